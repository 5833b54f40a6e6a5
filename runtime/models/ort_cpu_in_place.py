"""Graph for one text in ONNX Runtime, its KV cache written in place: a step does not copy the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clada.errors import CladaError
from clada.ops import graph_names
from clada.runtime.models.base import Array
from clada.runtime.models.ort_cpu import NUMPY_TYPES, Execution, OnnxRuntimeModel
from clada.runtime.models.ort_errors import one_line_errors

_SMALLEST_CAPACITY = 64


def capacity_for(tokens: int, context_length: int) -> int:
    """Capacity for a number of tokens: a power of two, or the model's context.

    Raises:
        CladaError: The text is longer than the context.
    """
    if tokens > context_length:
        raise CladaError(f"the text has {tokens} tokens; the model's context is {context_length}")
    return min(max(_SMALLEST_CAPACITY, 1 << (tokens - 1).bit_length()), context_length)


def refuse_padding(mask: Array) -> None:
    """Raise CladaError for an attention mask i64[1, T] that is not all ones."""
    if not mask.all():
        raise CladaError("the text is padded, which a cache that is written in place has no room for")


@dataclass
class InPlaceCache:
    """KV cache of one text, with room for more tokens, and the arrays that ONNX Runtime has bound.

    Args:
        binding: The session's binding; it refers to the memory of all arrays below.
        buffers: T[1, H, C, d], keys and values of each layer in turn, bound as past and as present.
        logits: T[1, 1, V], two, so that a step does not overwrite the logits it reads.
        length: Number of tokens in the buffers.
        inputs: The other inputs that are bound, by name.
        outputs: Names of the outputs that are bound, besides the buffers; None where the buffers are not bound yet.
    """

    binding: Any
    buffers: list[Array]
    logits: tuple[Array, Array]
    length: int
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None

    @property
    def capacity(self) -> int:
        """Number of tokens there is room for."""
        return int(self.buffers[0].shape[2])


class InPlaceModel(OnnxRuntimeModel):
    """Loaded graph with an in-place cache, for one text.

    Args:
        path: The ONNX file.
        context_length: The most tokens of a text; the cache grows up to it.
        execution: Options of ONNX Runtime.

    Raises:
        CladaError: ONNX Runtime cannot load the file, or not with the kernels that were asked for.
    """

    def __init__(self, path: Path, context_length: int, execution: Execution | None = None) -> None:
        super().__init__(path, execution)
        self._context_length = context_length
        self._outputs = {value.name: value for value in self._session.get_outputs()}

    def load_cache(self, keys_values: Sequence[Array]) -> InPlaceCache:
        """See OnnxRuntimeModel; of one text."""
        length = keys_values[0].shape[2]
        buffers = [self._with_room(array, length, length) for array in keys_values]
        logits = (self._output(graph_names.LOGITS, 1), self._output(graph_names.LOGITS, 1))
        return InPlaceCache(self._session.io_binding(), buffers, logits, length)

    def copy_cache(self, cache: InPlaceCache) -> InPlaceCache:
        """Copy a cache into memory of its own."""
        return self.load_cache([buffer[:, :, : cache.length] for buffer in cache.buffers])

    def read_cache(self, cache: InPlaceCache) -> list[Array]:
        """See OnnxRuntimeModel."""
        return [buffer[:, :, : cache.length] for buffer in cache.buffers]

    def rewind_cache(self, cache: InPlaceCache, tokens: int) -> InPlaceCache:
        """See Model."""
        cache.length = tokens
        return cache

    def _with_room(self, array: Array, length: int, wanted: int) -> Array:
        """Copy the first `length` tokens of a buffer into one that has room for `wanted`."""
        capacity = capacity_for(wanted, self._context_length)
        buffer = np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype)
        buffer[:, :, :length] = array[:, :, :length]
        return buffer

    def _output(self, name: str, length: int) -> Array:
        output = self._outputs[name]
        shape = [length if size == graph_names.SEQUENCE_LENGTH else size for size in output.shape]
        return np.empty(shape, NUMPY_TYPES[output.type])

    def step(
        self, inputs: Mapping[str, Array], cache: InPlaceCache, fetch: Sequence[str]
    ) -> tuple[dict[str, Any], InPlaceCache]:
        """Run the graph once; the logits of a decode step are overwritten by the step after the next.

        Args:
            inputs: Every input but the cache, by name; one that is the same array as in the step before stays bound.
            cache: From `empty_cache` or `load_cache`; brought up to date.
            fetch: Names of the outputs wanted.

        Returns:
            Those outputs, and the cache.

        Raises:
            CladaError: The text is padded, or longer than the model's context, or ONNX Runtime fails.
        """
        mask = inputs[graph_names.ATTENTION_MASK]
        refuse_padding(mask)
        total, binding = mask.shape[1], cache.binding
        if total > cache.capacity:
            cache.buffers = [self._with_room(buffer, cache.length, total) for buffer in cache.buffers]
            cache.outputs = None
        if tuple(fetch) != cache.outputs:
            self._bind_buffers(cache)
            cache.outputs = tuple(fetch)
        for name, array in inputs.items():
            if cache.inputs.get(name) is not array:
                binding.bind_cpu_input(name, array)
                cache.inputs[name] = array
        outputs = {name: self._output(name, inputs[graph_names.INPUT_IDS].shape[1]) for name in fetch}
        if graph_names.LOGITS in outputs and outputs[graph_names.LOGITS].shape == cache.logits[0].shape:
            read = inputs[graph_names.PAST_LOGITS]
            outputs[graph_names.LOGITS] = next(array for array in cache.logits if not np.may_share_memory(array, read))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        with one_line_errors():
            self._session.run_with_iobinding(binding)
        cache.length = total
        return outputs, cache

    def _bind_buffers(self, cache: InPlaceCache) -> None:
        # An output left bound would be written into memory that its reader may have given up.
        cache.binding.clear_binding_outputs()
        for past, present, buffer in zip(self._past, self._present, cache.buffers, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            cache.binding.bind_ortvalue_input(past, value)
            cache.binding.bind_ortvalue_output(present, value)
