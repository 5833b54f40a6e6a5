"""Graph for one text on a device, its KV cache written in place; decode of fixed shapes can be a CUDA graph."""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clada.ops import graph_names
from clada.runtime.models.memory import Array, put, read
from clada.runtime.models.ort_cpu import Execution
from clada.runtime.models.ort_cpu_in_place import capacity_for, refuse_padding
from clada.runtime.models.ort_cuda import DeviceModel
from clada.runtime.models.ort_cuda_session import GRAPH_ID, NO_GRAPH
from clada.runtime.models.resident import Buffers, DeviceCache


def _capacity(cache: DeviceCache) -> int:
    """Number of tokens there is room for."""
    return int(cache.keys_values[0].shape()[2])


class DeviceInPlaceModel(DeviceModel):
    """Loaded graph with an in-place cache, for one text, that stays on the device.

    Args:
        path: The ONNX file.
        context_length: The most tokens of a text; the cache grows up to it.
        execution: Options of ONNX Runtime, the device included.
        fixed_shapes: Whether all decode steps that one capacity of the cache has room for have the same shapes and
            addresses, which a CUDA graph needs; the graph must be one that takes a mask longer than the text.

    Raises:
        CladaError: As of DeviceModel; or ONNX Runtime cannot capture the graph, where that was asked for.
    """

    def __init__(self, path: Path, context_length: int, execution: Execution, fixed_shapes: bool = False) -> None:
        super().__init__(path, execution)
        self._context_length, self._fixed_shapes = context_length, fixed_shapes
        # Of texts that have ended, by capacity: what is captured refers to them, so the next text takes them.
        self._spare: dict[int, list[tuple[Buffers, list[Any]]]] = {}
        self._graphs = 1

    def load_cache(self, keys_values: Sequence[Array]) -> DeviceCache:
        """Create a cache that holds keys and values T[1, H, P, d], those of each layer in turn."""
        length = keys_values[0].shape[2]
        cache = DeviceCache(*self._memory(keys_values, max(length, 1)), length)
        self._give_back_after(cache)
        return cache

    def copy_cache(self, cache: DeviceCache) -> DeviceCache:
        """Copy a cache into memory of its own."""
        return self.load_cache([read(value)[:, :, : cache.length] for value in cache.keys_values])

    def _memory(self, keys_values: Sequence[Array], wanted: int) -> tuple[Buffers, list[Any]]:
        """Allocate memory for `wanted` tokens that holds keys and values T[1, H, P, d]."""
        capacity = capacity_for(wanted, self._context_length)
        arrays = []
        for array in keys_values:
            arrays.append(np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype))
            arrays[-1][:, :, : array.shape[2]] = array
        spare = self._spare.setdefault(capacity, [])
        if spare:
            buffers, values = spare.pop()
            for value, array in zip(values, arrays, strict=True):
                value.update_inplace(array)
            buffers.latest, buffers.steered = None, []
            return buffers, values
        buffers, values = self._buffers(1, capacity), [put(array, self._device) for array in arrays]
        buffers.graph_id, self._graphs = self._graphs, self._graphs + len(buffers.bindings)
        buffers.mask.write({graph_names.ATTENTION_MASK: np.ones(capacity, np.int64)})
        for binding in buffers.bindings:
            for past, present, value in zip(self._past, self._present, values, strict=True):
                binding.bind_ortvalue_input(past, value)
                binding.bind_ortvalue_output(present, value)
        return buffers, values

    def _give_back_after(self, cache: DeviceCache) -> None:
        """Return a cache's memory for reuse once it is gone, so that its captured graphs serve another text."""
        if self._fixed_shapes:
            memory = cache.buffers, cache.keys_values
            cache.release = weakref.finalize(cache, self._spare[_capacity(cache)].append, memory)

    def _prepare_cache(self, cache: DeviceCache, total: int) -> None:
        if total > _capacity(cache):
            held = [read(value)[:, :, : cache.length] for value in cache.keys_values]
            memory = self._memory(held, total)
            if cache.release is not None:
                cache.release()
            cache.buffers, cache.keys_values = memory
            self._give_back_after(cache)

    def _bind_mask(self, binding: Any, cache: DeviceCache, mask: Array, decodes: bool) -> None:
        # All ones, and there already; how long it is says how much of the cache is text, or may be.
        length = _capacity(cache) if decodes and self._fixed_shapes else mask.shape[1]
        cache.buffers.mask.bind_input(binding, graph_names.ATTENTION_MASK, shape=(1, length))

    def _bind_cache(self, binding: Any, cache: DeviceCache, total: int) -> None:
        """Do nothing: the cache is bound where its memory is allocated."""

    def _take_cache(self, binding: Any, cache: DeviceCache, total: int) -> None:
        cache.length = total

    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        options = onnxruntime.RunOptions()
        captured = decodes and self._fixed_shapes
        options.add_run_config_entry(GRAPH_ID, str(buffers.graph_id + buffers.reads if captured else NO_GRAPH))
        self._session.run_with_iobinding(binding, options)

    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """See DeviceModel.

        Raises:
            CladaError: The text is padded, or longer than the model's context; and as of DeviceModel.
        """
        refuse_padding(inputs[graph_names.ATTENTION_MASK])
        return super().step(inputs, cache, fetch)
