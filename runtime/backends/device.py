"""The graph in ONNX Runtime with everything that lasts on its device; a step moves tokens there and logits back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clada.plugins import graph
from clada.plugins.errors import CladaError
from clada.runtime.backends.cuda import cuda_providers, one_line_errors
from clada.runtime.backends.device_score import DeviceScore, accumulation
from clada.runtime.backends.memory import Array, Slab, put, read
from clada.runtime.backends.onnxruntime import Execution, OnnxRuntimeModel, session_options
from clada.runtime.pool import Floats, Masks, RunningScore

# Of a step's outputs: the Slab that holds all scores of a decode step, which stay on the device.
_SCORES = "scores"


@dataclass
class Buffers:
    """Memory of one batch of texts, at addresses that stay, and what ONNX Runtime has bound to it.

    Args:
        tokens: i64[B, 1] each, ids and positions of a decode step.
        mask: i64[B · C], with room for masks of up to C tokens.
        pools: bool[B, F] for each layer.
        logits: T[B, 1, V], two, so that a step does not overwrite the logits it reads.
        telemetry: What a step tells of itself.
        scores: f32[B, F] for each layer.
        bindings: Two: each reads the logits of its index and writes the others.
        reads: Which of the logits the next step reads.
        latest: Those logits as they were given out; None where they are not on the device.
        masks: The pools that are on the device.
        graph_id: Of the CUDA graph of the steps that read the first logits; the next is of those that read the others.
    """

    tokens: Slab
    mask: Slab
    pools: Slab
    logits: tuple[Any, Any]
    telemetry: Slab
    scores: Slab
    bindings: tuple[Any, Any]
    reads: int = 0
    latest: Array | None = None
    masks: Masks = field(default_factory=list)
    graph_id: int = 0

    def write_pools(self, masks: Masks) -> None:
        """Bring the pools to the device, if they are not those that are there."""
        if len(masks) != len(self.masks) or any(new is not old for new, old in zip(masks, self.masks, strict=True)):
            self.pools.write({graph.pool(layer): mask for layer, mask in enumerate(masks)})
            self.masks = list(masks)

    def write_logits(self, logits: Array) -> None:
        """Bring logits T[B, V] to the device, if they are not those that a step left there."""
        if self.latest is None or not np.may_share_memory(logits, self.latest):
            self.logits[self.reads].update_inplace(np.ascontiguousarray(logits[:, None]))


@dataclass
class DeviceCache:
    """What a batch of texts has on the device.

    Args:
        buffers: Its memory, but keys and values.
        keys_values: T[B, H, P, d], keys and values of each layer in turn.
        length: How many tokens those hold, padding included.
        release: Gives the memory back for another text; None where it is freed.
    """

    buffers: Buffers
    keys_values: list[Any]
    length: int
    release: Callable[[], Any] | None = None


class DeviceModel(OnnxRuntimeModel):
    """A loaded graph, for any number of texts, whose cache, logits, pools and scores stay on the device.

    Args:
        path: The ONNX file.
        execution: How to run it, and on what device.

    Raises:
        CladaError: ONNX Runtime cannot load the file, not on the device or not with the kernels that were asked for.
    """

    def __init__(self, path: Path, execution: Execution) -> None:
        super().__init__(path, execution)
        self._execution, self._device = execution, execution.device
        logits = next(value for value in self._session.get_outputs() if value.name == graph.LOGITS)
        self._logits_of_all = logits.shape[1] != 1

    def load_cache(self, keys_values: Sequence[Array]) -> Any:
        """A cache that holds keys and values T[B, H, P, d], those of each layer in turn."""
        texts, _, length, _ = keys_values[0].shape
        return DeviceCache(self._buffers(texts), [put(array, self._device) for array in keys_values], length)

    def copy_cache(self, cache: DeviceCache) -> Any:
        """A cache that steps from the other one on leave as it is."""
        texts = cache.keys_values[0].shape()[0]
        return DeviceCache(self._buffers(texts), list(cache.keys_values), cache.length)

    def _buffers(self, texts: int, room: int = 64) -> Buffers:
        """Memory for so many texts, what lasts already bound."""
        scalars = dict.fromkeys((graph.SURPRISAL, graph.ENTROPY, graph.LOAD), ((texts,), np.float32))
        layers = range(self.layers)
        nothing = np.zeros((texts, 1, self.vocabulary), self.dtype)
        buffers = Buffers(
            Slab(dict.fromkeys((graph.INPUT_IDS, graph.POSITION_IDS), ((texts, 1), np.int64)), self._device),
            self._mask_slab(texts, room),
            Slab({graph.pool(n): ((texts, self.neurons[n]), np.bool_) for n in layers}, self._device),
            (put(nothing, self._device), put(nothing, self._device)),
            Slab(scalars | {graph.ACTIVE: ((self.layers, texts), np.int32)}, self._device),
            Slab({graph.score(n): ((texts, self.neurons[n]), np.float32) for n in layers}, self._device),
            (self._session.io_binding(), self._session.io_binding()),
        )
        for reads, binding in enumerate(buffers.bindings):
            shape, address = [texts, self.vocabulary], buffers.logits[reads].data_ptr()
            binding.bind_input(graph.PAST_LOGITS, self._device, 0, self.dtype.type, shape, address)
            binding.bind_ortvalue_output(graph.LOGITS, buffers.logits[1 - reads])
            for slab in (buffers.telemetry, buffers.scores):
                for name in slab.layout:
                    slab.bind_output(binding, name)
            for name in buffers.pools.layout:
                buffers.pools.bind_input(binding, name)
        return buffers

    def _mask_slab(self, texts: int, room: int) -> Slab:
        return Slab({graph.ATTENTION_MASK: ((texts * room,), np.int64)}, self._device)

    def scores(self, outputs: Mapping[str, Any]) -> Any:
        """See OnnxRuntimeModel; they stay on the device."""
        return outputs[_SCORES]

    def running_score(self, score: list[Floats]) -> RunningScore:
        """See OnnxRuntimeModel."""
        return DeviceScore(self._accumulation, score, self._device)

    @cached_property
    def _accumulation(self) -> Any:
        providers = cuda_providers(cuda_graph=False) if self._device == "cuda" else ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(accumulation(), session_options(self._execution), providers=providers)

    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """Run the graph once.

        Args:
            inputs: Every input but the cache, by name. Pools that are the same arrays as in the step before, and
                past logits that are the last step's, are on the device already.
            cache: From `empty_cache`, `load_cache` or the step before; brought up to date.
            fetch: Names of the outputs wanted.

        Returns:
            Those outputs, and the cache. The scores of a decode step stay on the device: `scores` finds them.

        Raises:
            CladaError: A token is not in the vocabulary, or the device fails or is out of memory.
        """
        ids, total = inputs[graph.INPUT_IDS], inputs[graph.ATTENTION_MASK].shape[1]
        if ids.min() < 0 or ids.max() >= self.vocabulary:  # a device cannot raise
            raise CladaError(f"token {ids.max()} is not in the model's vocabulary of {self.vocabulary}")
        decodes = ids.shape[1] == 1 and total > 1
        with one_line_errors(self._device):
            self._prepare_cache(cache, total)
            buffers: Buffers = cache.buffers
            buffers.write_pools([inputs[graph.pool(n)] for n in range(self.layers)])
            buffers.write_logits(inputs[graph.PAST_LOGITS])
            binding = buffers.bindings[buffers.reads]
            tokens = self._bind_tokens(binding, buffers.tokens if decodes else None, inputs)
            self._bind_mask(binding, cache, inputs[graph.ATTENTION_MASK], decodes)
            self._bind_cache(binding, cache)
            every_position = self._logits_of_all and ids.shape[1] > 1
            if every_position:
                binding.bind_output(graph.LOGITS, self._device, 0)
            self._run(binding, buffers, decodes)
            del tokens  # what was bound must live until here
            self._take_cache(binding, cache, total)
            if every_position:
                buffers.latest = None
                logits = read(binding.get_outputs()[0])
                binding.bind_ortvalue_output(graph.LOGITS, buffers.logits[1 - buffers.reads])
            else:
                buffers.reads = 1 - buffers.reads
                logits = read(buffers.logits[buffers.reads])
                logits.setflags(write=False)  # a change would not reach the device
                buffers.latest = logits
            return self._outputs_of(buffers, logits, fetch, decodes), cache

    def _outputs_of(self, buffers: Buffers, logits: Array, fetch: Sequence[str], decodes: bool) -> dict[str, Any]:
        outputs: dict[str, Any] = {graph.LOGITS: logits}
        if any(name in buffers.telemetry.layout for name in fetch):
            outputs |= buffers.telemetry.read()
        if decodes:
            outputs[_SCORES] = buffers.scores
        elif any(name in buffers.scores.layout for name in fetch):
            outputs |= buffers.scores.read()
        return outputs

    def _bind_tokens(self, binding: Any, slab: Slab | None, inputs: Mapping[str, Array]) -> Slab:
        """Bind ids and positions, in memory of a decode step's or of their own; returns what must live."""
        arrays = {name: inputs[name] for name in (graph.INPUT_IDS, graph.POSITION_IDS)}
        slab = slab or Slab({name: (array.shape, np.int64) for name, array in arrays.items()}, self._device)
        slab.write(arrays)
        for name in arrays:
            slab.bind_input(binding, name)
        return slab

    def _bind_mask(self, binding: Any, cache: DeviceCache, mask: Array, decodes: bool) -> None:
        slab = cache.buffers.mask
        if mask.size > slab.layout[graph.ATTENTION_MASK][0][0]:
            slab = cache.buffers.mask = self._mask_slab(len(mask), 1 << (mask.shape[1] - 1).bit_length())
        slab.write({graph.ATTENTION_MASK: mask})
        slab.bind_input(binding, graph.ATTENTION_MASK, shape=mask.shape)

    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        self._session.run_with_iobinding(binding)

    def _prepare_cache(self, cache: DeviceCache, total: int) -> None:
        """Make room for a text that is `total` tokens long after the step."""

    def _bind_cache(self, binding: Any, cache: DeviceCache) -> None:
        for past, present, value in zip(self._past, self._present, cache.keys_values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_output(present, self._device, 0)

    def _take_cache(self, binding: Any, cache: DeviceCache, total: int) -> None:
        cache.keys_values = binding.get_outputs()[-len(self._present) :]
        cache.length = total
