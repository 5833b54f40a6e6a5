"""Graph with all persistent state on its device; a step copies tokens there and logits back."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.contract.pool import Floats, RunningScore
from clada.errors import CladaError
from clada.ops import graph_names
from clada.runtime.models.base import Model
from clada.runtime.models.memory import Array, Placed, Put, Slab, read
from clada.runtime.models.score import DeviceScore

# Of a step's outputs: the Slab that holds all scores of a decode step, which stay on the device.
_SCORES = "scores"


@dataclass
class Buffers:
    """Memory of one batch of texts, at fixed addresses, and its bindings.

    Args:
        tokens: i64[B, 1] each, ids and positions of a decode step.
        mask: i64[B · C], with room for masks of up to C tokens.
        steering: Selection of neurons or inputs: pools, bool[B, F] for each layer, or effort, f32[B].
        logits: T[B, 1, V], two, so that a step does not overwrite the logits it reads.
        telemetry: Telemetry of a step.
        scores: f32[B, F] for each layer; None where inputs are skipped.
        bindings: Two: each reads the logits of its index and writes the others.
        reads: Index of the logits that the next step reads.
        latest: Those logits as they were given out; None where they are not on the device.
        steered: Values of `steering` that are on the device.
        graph_id: Id of the CUDA graph of the steps that read the first logits; the next id is that of the others.
    """

    tokens: Slab
    mask: Slab
    steering: Slab
    logits: tuple[Placed, Placed]
    telemetry: Slab
    scores: Slab | None
    bindings: tuple[Any, Any]
    reads: int = 0
    latest: Array | None = None
    steered: list[Array] = field(default_factory=list)
    graph_id: int = 0

    def write_steering(self, inputs: Mapping[str, Array]) -> None:
        """Copy pools or effort to the device, unless they are there already."""
        given = {name: inputs[name] for name in self.steering.layout}
        there = len(self.steered) == len(given)
        if not there or any(new is not old for new, old in zip(given.values(), self.steered, strict=True)):
            self.steering.write(given)
            self.steered = list(given.values())

    def write_logits(self, logits: Array) -> None:
        """Copy logits T[B, V] to the device, unless they are those that a step left there."""
        if self.latest is None or not np.may_share_memory(logits, self.latest):
            self.logits[self.reads].update_inplace(np.ascontiguousarray(logits[:, None]))


@dataclass
class DeviceCache:
    """State of a batch of texts on the device.

    Args:
        buffers: Its memory, but keys and values.
        keys_values: T[B, H, P, d], keys and values of each layer in turn.
        length: Number of tokens they hold, padding included.
        release: Gives the memory back for another text; None where it is freed.
    """

    buffers: Buffers
    keys_values: list[Any]
    length: int
    release: Callable[[], Any] | None = None


class ResidentModel(Model):
    """Loaded graph, for any number of texts, whose cache, logits, pools and scores stay on its device.

    What executes it is told by bindings, which have the methods of ONNX Runtime's IOBinding that take an address.

    Args:
        inputs: See Model, as is the next.
        kernels: See Model.
        device: The device, as ONNX Runtime names it.
        place: Puts an array there.
        sites: Number of layers that skip neurons, or of products that skip inputs.
        logits_of_all: Whether the graph gives the logits of every position, not of the last one alone.
    """

    def __init__(
        self,
        inputs: Mapping[str, tuple[Sequence[Any], npt.DTypeLike]],
        kernels: str,
        device: str,
        place: Put,
        sites: int,
        logits_of_all: bool = False,
    ) -> None:
        super().__init__(inputs, kernels)
        self._device, self._place, self._sites, self._logits_of_all = device, place, sites, logits_of_all
        # What a step binds, and memory that ended texts leave to the next, is one at a time.
        self.turn = threading.RLock()

    @abstractmethod
    def _binding(self) -> Any:
        """Create a binding for the addresses of a step's inputs and outputs."""

    def _slab(self, layout: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]) -> Slab:
        return Slab(layout, self._device, self._place)

    def _buffers(self, texts: int, room: int = 64) -> Buffers:
        """Allocate memory for a number of texts, persistent arrays already bound."""
        names = (
            graph_names.SURPRISAL,
            graph_names.ENTROPY,
            graph_names.LOAD,
            *([graph_names.READ] if self.by_input else []),
        )
        scalars = dict.fromkeys(names, ((texts,), np.float32))
        sizes = list(enumerate(self.neurons))
        pools = {graph_names.pool(n): ((texts, neurons), np.bool_) for n, neurons in sizes}
        scores = {graph_names.score(n): ((texts, neurons), np.float32) for n, neurons in sizes}
        nothing = np.zeros((texts, 1, self.vocabulary), self.dtype)
        buffers = Buffers(
            self._slab(dict.fromkeys((graph_names.INPUT_IDS, graph_names.POSITION_IDS), ((texts, 1), np.int64))),
            self._mask_slab(texts, room),
            self._slab({graph_names.EFFORT: ((texts,), np.float32)} if self.by_input else pools),
            (self._place(nothing), self._place(nothing)),
            self._slab(scalars | {graph_names.ACTIVE: ((self._sites, texts), np.int32)}),
            self._slab(scores) if scores else None,
            (self._binding(), self._binding()),
        )
        for reads, binding in enumerate(buffers.bindings):
            shape, address = [texts, self.vocabulary], buffers.logits[reads].data_ptr()
            binding.bind_input(graph_names.PAST_LOGITS, self._device, 0, self.dtype.type, shape, address)
            self._bind_logits(binding, buffers.logits[1 - reads], texts)
            for slab in filter(None, (buffers.telemetry, buffers.scores)):
                for name in slab.layout:
                    slab.bind_output(binding, name)
            for name in buffers.steering.layout:
                buffers.steering.bind_input(binding, name)
        return buffers

    def _bind_logits(self, binding: Any, logits: Placed, texts: int) -> None:
        shape = [texts, 1, self.vocabulary]
        binding.bind_output(graph_names.LOGITS, self._device, 0, self.dtype.type, shape, logits.data_ptr())

    def _mask_slab(self, texts: int, room: int) -> Slab:
        return self._slab({graph_names.ATTENTION_MASK: ((texts * room,), np.int64)})

    def scores(self, outputs: Mapping[str, Any]) -> Any:
        """See Model; they stay on the device."""
        return outputs[_SCORES]

    def running_score(self, score: list[Floats]) -> RunningScore:
        """See Model."""
        return DeviceScore(self._accumulation, score, self._device, self._place)

    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """Run the graph once.

        Args:
            inputs: Every input but the cache, by name. Pools or effort that are the same arrays as in the step before,
                and past logits that are the last step's, are on the device already.
            cache: From `empty_cache`, `copy_cache` or the step before; brought up to date.
            fetch: Names of the outputs wanted.

        Returns:
            Those outputs, and the cache. The scores of a decode step stay on the device: `scores` finds them.

        Raises:
            CladaError: A token is not in the vocabulary, or the device fails or is out of memory.
        """
        ids, total = inputs[graph_names.INPUT_IDS], inputs[graph_names.ATTENTION_MASK].shape[1]
        outside = ids[(ids < 0) | (ids >= self.vocabulary)]
        if outside.size:  # a device cannot raise
            raise CladaError(f"token {outside[0]} is not in the model's vocabulary of {self.vocabulary}")
        decodes = ids.shape[1] == 1 and total > 1
        with self._errors():
            self._prepare_cache(cache, total)
            buffers: Buffers = cache.buffers
            buffers.write_steering(inputs)
            buffers.write_logits(inputs[graph_names.PAST_LOGITS])
            binding = buffers.bindings[buffers.reads]
            tokens = self._bind_tokens(binding, buffers.tokens if decodes else None, inputs)
            self._bind_mask(binding, cache, inputs[graph_names.ATTENTION_MASK], decodes)
            self._bind_cache(binding, cache, total)
            every_position = self._logits_of_all and ids.shape[1] > 1
            if every_position:
                binding.bind_output(graph_names.LOGITS, self._device, 0)
            self._run(binding, buffers, decodes)
            self._take_cache(binding, cache, total)
            if every_position:
                buffers.latest = None
                logits = read(binding.get_outputs()[0])
                self._bind_logits(binding, buffers.logits[1 - buffers.reads], len(ids))
            else:
                buffers.reads = 1 - buffers.reads
                logits = read(buffers.logits[buffers.reads])
                logits.setflags(write=False)  # a change would not reach the device
                buffers.latest = logits
            del tokens  # what was bound must live until something has been read
            return self._outputs_of(buffers, logits, fetch, decodes), cache

    def _outputs_of(self, buffers: Buffers, logits: Array, fetch: Sequence[str], decodes: bool) -> dict[str, Any]:
        outputs: dict[str, Any] = {graph_names.LOGITS: logits}
        if any(name in buffers.telemetry.layout for name in fetch):
            outputs |= buffers.telemetry.read()
        if buffers.scores is None:
            return outputs
        if decodes:
            outputs[_SCORES] = buffers.scores
        elif any(name in buffers.scores.layout for name in fetch):
            outputs |= buffers.scores.read()
        return outputs

    def _bind_tokens(self, binding: Any, slab: Slab | None, inputs: Mapping[str, Array]) -> Slab:
        """Bind ids and positions, in memory of a decode step's or of their own; returns the slab to keep alive."""
        arrays = {name: inputs[name] for name in (graph_names.INPUT_IDS, graph_names.POSITION_IDS)}
        slab = slab or self._slab({name: (array.shape, np.int64) for name, array in arrays.items()})
        slab.write(arrays)
        for name in arrays:
            slab.bind_input(binding, name)
        return slab

    def _bind_mask(self, binding: Any, cache: Any, mask: Array, decodes: bool) -> None:
        slab = cache.buffers.mask
        if mask.size > slab.layout[graph_names.ATTENTION_MASK][0][0]:
            slab = cache.buffers.mask = self._mask_slab(len(mask), 1 << (mask.shape[1] - 1).bit_length())
        slab.write({graph_names.ATTENTION_MASK: mask})
        slab.bind_input(binding, graph_names.ATTENTION_MASK, shape=mask.shape)

    @abstractmethod
    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        """Run the graph on the bound arrays."""

    def _prepare_cache(self, cache: Any, total: int) -> None:
        """Make room for a text that is `total` tokens long after the step."""

    @abstractmethod
    def _bind_cache(self, binding: Any, cache: Any, total: int) -> None:
        """Bind past and present keys and values, the latter of `total` tokens."""

    @abstractmethod
    def _take_cache(self, binding: Any, cache: Any, total: int) -> None:
        """Store the present keys and values as the past of the next step."""

    def _errors(self) -> AbstractContextManager[None]:
        """Turn the device's exceptions, within the context, into a CladaError."""
        return nullcontext()

    @property
    @abstractmethod
    def _accumulation(self) -> Any:
        """Create the runner of the graph `accumulation`."""
