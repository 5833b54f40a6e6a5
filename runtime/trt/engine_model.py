"""TensorRT engine with all persistent state on the GPU: two sets of keys and values, swapped after each step."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clada.contract.engine_record import DECODE, PREFILL, EngineRecord
from clada.errors import CladaError
from clada.ops import graph_names
from clada.runtime.models.memory import Array, Memory, Placed, padded
from clada.runtime.models.resident import Buffers, ResidentModel
from clada.runtime.trt.contexts import EngineBinding, EngineSession


@dataclass
class EngineCache:
    """State of a batch of texts on the GPU.

    Args:
        buffers: Its memory, but keys and values.
        keys_values: Two sets of room for T[B, H, C, d], keys and values of each layer in turn.
        texts: B.
        length: Number of tokens in the set to read, padding included.
        reads: Index of the set to read; a step writes the other.
        slots: Number of tokens of each text in the layout of that set, where it is written in place.
    """

    buffers: Buffers
    keys_values: tuple[Placed, Placed]
    texts: int
    length: int = 0
    reads: int = 0
    slots: int = 0


class EngineModel(ResidentModel):
    """Engine and its texts on the GPU.

    Args:
        session: Runs the engine.
        record: Record of the engine.
        memory: The GPU's.
        kernels: Kernels that run the ops.
        accumulation: Makes what runs the graph of the running score, for arrays of `smallest` to `largest` elements.
    """

    def __init__(
        self,
        session: EngineSession,
        record: EngineRecord,
        memory: Memory,
        kernels: str,
        accumulation: Callable[[int, int], EngineSession],
    ) -> None:
        super().__init__(session.inputs, kernels, "cuda", memory.place, session.sites)
        self._session, self._record, self._memory = session, record, memory
        self._make_accumulation = accumulation
        # Of the text that ended last: the next of as many takes it.
        self._spare: list[tuple[int, Buffers, tuple[Placed, Placed]]] = []

    def empty_cache(self, texts: int) -> EngineCache:
        """Create a cache of no tokens.

        Raises:
            CladaError: The engine is for fewer texts, or the GPU's memory is full.
        """
        if texts > self._record.max_batch:
            raise CladaError(
                f"{texts} texts are more than the {self._record.max_batch} that the engine was built for: give fewer "
                f"at once, or build it with --max-batch {texts}"
            )
        held, buffers, keys_values = self._spare.pop() if self._spare else (0, None, None)
        if held != texts or buffers is None or keys_values is None:
            buffers = keys_values = None  # gives the memory back before more is asked for
            keys_values = self._sets(texts)
            buffers = self._buffers(texts, self._record.capacity + 1)
        buffers.latest, buffers.steered = None, []
        cache = EngineCache(buffers, keys_values, texts)
        weakref.finalize(cache, self._take_back, texts, buffers, keys_values).atexit = False
        return cache

    def _take_back(self, *memory: Any) -> None:
        self._spare[:] = [memory]

    def copy_cache(self, cache: EngineCache) -> EngineCache:
        """See Model."""
        copied = self.empty_cache(cache.texts)
        copied.length, copied.slots = cache.length, cache.slots
        target, source = copied.keys_values[copied.reads], cache.keys_values[cache.reads]
        size = self._offsets(cache.texts, self._record.capacity)[-1]
        self._memory.copy(target.data_ptr(), source.data_ptr(), size)
        return copied

    def _offsets(self, texts: int, slots: int) -> list[int]:
        """Offsets in a set of each layer's keys and values, and the size of the set, in bytes."""
        offsets = [0]
        for heads, width in self._cache_sizes:
            offsets.append(offsets[-1] + padded((texts, heads, slots, width)) * self.dtype.itemsize)
        return offsets

    def _sets(self, texts: int) -> tuple[Placed, Placed]:
        size = self._offsets(texts, self._record.capacity)[-1]
        return self._memory.empty(size), self._memory.empty(size)

    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """See ResidentModel.

        Raises:
            CladaError: The prompt or the text is longer than the engine has room for; and as of ResidentModel.
        """
        tokens, total = inputs[graph_names.INPUT_IDS].shape[1], inputs[graph_names.ATTENTION_MASK].shape[1]
        if tokens > self._record.max_prompt:
            raise CladaError(
                f"the prompt has {tokens} tokens, and the engine was built for {self._record.max_prompt}: build it "
                f"with --max-prompt {tokens}"
            )
        if total > self._record.capacity:
            raise CladaError(
                f"the text has {total} tokens, padding included, and the engine was built for "
                f"{self._record.capacity}: build it with --capacity {total}"
            )
        return super().step(inputs, cache, fetch)

    def _binding(self) -> EngineBinding:
        return self._session.io_binding()

    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        self._session.run(binding, DECODE if decodes else PREFILL)

    def _bind_cache(self, binding: Any, cache: EngineCache, total: int) -> None:
        past, present = cache.keys_values[cache.reads].data_ptr(), cache.keys_values[1 - cache.reads].data_ptr()
        offsets = self._offsets(cache.texts, self._record.capacity)
        rows = zip(self._past, self._present, self._cache_sizes, offsets, strict=False)
        for past_name, present_name, (heads, width), offset in rows:
            shapes = ([cache.texts, heads, length, width] for length in (cache.length, total))
            binding.bind_input(past_name, self._device, 0, self.dtype, next(shapes), past + offset)
            binding.bind_output(present_name, self._device, 0, self.dtype, next(shapes), present + offset)

    def _take_cache(self, binding: Any, cache: EngineCache, total: int) -> None:
        cache.reads, cache.length = 1 - cache.reads, total

    @cached_property
    def _accumulation(self) -> Any:
        smallest, largest = (
            sum(padded((texts, neurons)) for neurons in self.neurons) for texts in (1, self._record.max_batch)
        )
        return self._make_accumulation(smallest, largest)
