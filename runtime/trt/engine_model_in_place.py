"""TensorRT engine that outputs a step's keys and values alone: one set of them, whose slots fill up.

A decode step reads all slots, by a mask that leaves out those that are free, so that all steps have the same shapes and
addresses and can be captured in a CUDA graph. Once none is free there are twice as many.
"""

from typing import Any

import numpy as np

from clada.contract.engine_record import DECODE, PREFILL
from clada.ops import graph_names
from clada.runtime.models.memory import Array, Placed
from clada.runtime.models.resident import Buffers
from clada.runtime.trt.engine_model import EngineCache, EngineModel

_FEWEST_SLOTS = 64


def slots_for(tokens: int, capacity: int) -> int:
    """Number of slots for this many tokens: the capacity, or what halving it leaves."""
    slots = capacity
    while slots // 2 >= max(tokens, _FEWEST_SLOTS):
        slots //= 2
    return slots


class EngineInPlaceModel(EngineModel):
    """Engine whose `present` outputs are the new keys and values; arguments as of EngineModel.

    Of a cache's two sets the first has room for the longest text, and the second holds the tokens of one step.
    """

    def _sets(self, texts: int) -> tuple[Placed, Placed]:
        slots = self._record.capacity, self._record.max_prompt
        every, new = (self._memory.empty(self._offsets(texts, count)[-1]) for count in slots)
        return every, new

    def empty_cache(self, texts: int) -> EngineCache:
        """See EngineModel."""
        cache = super().empty_cache(texts)
        # What the text before left would count, if it was not finite, even where it is masked.
        size = self._offsets(texts, self._record.capacity)[-1]
        self._memory.clear(cache.keys_values[0].data_ptr(), size)
        return cache

    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        self._session.run(binding, DECODE if decodes else PREFILL, captured=decodes)

    def _bind_mask(self, binding: Any, cache: EngineCache, mask: Array, decodes: bool) -> None:
        if decodes:
            slots = np.zeros((cache.texts, cache.slots + 1), np.int64)
            slots[:, : cache.length], slots[:, -1:] = mask[:, :-1], mask[:, -1:]
            mask = slots
        cache.buffers.mask.write({graph_names.ATTENTION_MASK: mask})
        cache.buffers.mask.bind_input(binding, graph_names.ATTENTION_MASK, shape=mask.shape)

    def _bind_cache(self, binding: Any, cache: EngineCache, total: int) -> None:
        every, new = (keys_values.data_ptr() for keys_values in cache.keys_values)
        read = cache.slots if cache.length else 0
        for past, present, (heads, width), slot, row in self._places(cache.texts):
            shape = [cache.texts, heads, read, width]
            binding.bind_input(past, self._device, 0, self.dtype, shape, every + slot)
            shape = [cache.texts, heads, total - cache.length, width]
            binding.bind_output(present, self._device, 0, self.dtype, shape, new + row)

    def _take_cache(self, binding: Any, cache: EngineCache, total: int) -> None:
        if total > cache.slots:
            self._add_slots(cache, slots_for(total, self._record.capacity))
        every, new = (keys_values.data_ptr() for keys_values in cache.keys_values)
        for _, _, (heads, width), slot, row in self._places(cache.texts):
            token = width * self.dtype.itemsize
            target = every + slot + cache.length * token
            size = (total - cache.length) * token
            pitch = cache.slots * token
            self._memory.copy_rows(target, pitch, new + row, size, size, cache.texts * heads)
        cache.length = total

    def _add_slots(self, cache: EngineCache, slots: int) -> None:
        """Move a cache to a layout of twice the slots or more, so that a row that is moved does not overlap itself.

        From the last row on: none is written over before it was moved.
        """
        every = cache.keys_values[0].data_ptr()
        for _, _, (heads, width), slot, _ in self._places(cache.texts):
            token = width * self.dtype.itemsize
            for row in range(cache.texts * heads - 1, 0, -1) if cache.length else ():
                target, source = (every + slot + row * count * token for count in (slots, cache.slots))
                self._memory.copy(target, source, cache.length * token)
        cache.slots = slots

    def _places(self, texts: int) -> list[tuple[str, str, tuple[int, int], int, int]]:
        """Layout of each layer's keys and values: names, heads and width, and where they begin in either set."""
        slots, rows = (self._offsets(texts, count) for count in (self._record.capacity, self._record.max_prompt))
        return list(zip(self._past, self._present, self._cache_sizes, slots, rows, strict=False))
