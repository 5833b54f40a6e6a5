"""Timing of a whole model: its decode steps in ONNX Runtime, dense and with our ops, as a session runs them."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from clada.benchmark.contender import Contender, checked_error, ours
from clada.benchmark.model_graph import traced_model
from clada.benchmark.own_process import in_own_process
from clada.benchmark.report import Table, rows
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import MAXIMUM_CONTEXT, Shape, random_tokens
from clada.benchmark.timing import Samples, measure, wall_seconds
from clada.benchmark.variants import Graph, write_pair
from clada.errors import CladaError
from clada.ops import graph_names
from clada.ops.devices import Device, OrtKernels
from clada.ops.record import Array
from clada.runtime.models.memory import Slab
from clada.runtime.models.ort_cpu import Execution
from clada.runtime.models.ort_cuda_in_place import DeviceInPlaceModel
from clada.runtime.models.resident import Buffers
from gpu_suite.report import MODEL
from gpu_suite.timing import IN_GRAPH, LAUNCHED, LeftOut, Timing

# The type that ONNX Runtime's attention knows on a GPU.
ELEMENT = "float16"
DENSE = f"ORT dense {ELEMENT}"
STEP_IN_GRAPH, STEP_LAUNCHED = "decode step with its copies, in a CUDA graph", "decode step with its copies, launched"
# Decoding goes through these in turn: what is active differs by token. An even number: steps take turns at two buffers.
_TOKENS = 8


@dataclass(frozen=True)
class Files:
    """A model as graphs on disk.

    Args:
        ours: With our ops.
        dense: Without.
        thresholds: For each share of neurons, f32[F] for each layer.
    """

    ours: Graph
    dense: Graph
    thresholds: Mapping[float, Sequence[Array]]


def _written(shape: Shape, fractions: Sequence[float], folder: Path) -> Files:
    traced, thresholds = traced_model(shape, fractions, getattr(torch, ELEMENT))
    return Files(*write_pair(traced, folder), thresholds)


@contextmanager
def written_model(shape: Shape, fractions: Sequence[float]) -> Iterator[Files]:
    """Write a model with random weights; its files are gone when the context ends."""
    with TemporaryDirectory(prefix="clada-gpu-") as folder:
        yield in_own_process(_written, shape, fractions, Path(folder))


class Runner(DeviceInPlaceModel):
    """Model of one text, as in the runtime, with thresholds as inputs, that records how long its graph ran.

    Args:
        path: The ONNX file.
        execution: Options of ONNX Runtime.
        fixed_shapes: See DeviceInPlaceModel.
        counts: Whether it has our ops, and so telemetry, scores and thresholds.
    """

    def __init__(self, path: Path, execution: Execution, fixed_shapes: bool, counts: bool) -> None:
        super().__init__(path, MAXIMUM_CONTEXT, execution, fixed_shapes)
        self.counts = counts
        self.thresholds: Slab | None = None
        self.seconds = 0.0

    def slab(self, thresholds: Sequence[Array]) -> Slab:
        """Put thresholds on the device, for the caches that are created while they are `self.thresholds`."""
        slab = Slab({graph_names.threshold(n): (t.shape, np.float32) for n, t in enumerate(thresholds)}, self._device)
        slab.write({graph_names.threshold(n): threshold for n, threshold in enumerate(thresholds)})
        return slab

    def _buffers(self, texts: int, room: int = 64) -> Buffers:
        buffers = super()._buffers(texts, room)
        for reads, binding in enumerate(buffers.bindings):
            if self.thresholds is not None:
                for name in self.thresholds.layout:
                    self.thresholds.bind_input(binding, name)
            if not self.counts:
                # Constants there, which an ordinary export does not have.
                binding.clear_binding_outputs()
                binding.bind_ortvalue_output(graph_names.LOGITS, buffers.logits[1 - reads])
        return buffers

    def _run(self, binding: Any, buffers: Buffers, decodes: bool) -> None:
        start = time.perf_counter()
        super()._run(binding, buffers, decodes)
        self.seconds += time.perf_counter() - start


class Steps:
    """Decode steps of a text after a prompt, with thresholds of their own.

    Args:
        runner: Runner of the steps.
        shape: The model's sizes.
        thresholds: f32[F] for each layer; None where the graph takes none.
        context: Tokens of the prompt.
    """

    def __init__(self, runner: Runner, shape: Shape, thresholds: Sequence[Array] | None, context: int) -> None:
        self.runner, self._neurons, self._context = runner, shape.neurons, context
        self._fetch = [graph_names.LOGITS, graph_names.ACTIVE] if runner.counts else [graph_names.LOGITS]
        self._slab = runner.thresholds = None if thresholds is None else runner.slab(thresholds)
        width = shape.hidden // shape.heads
        empty = np.zeros((1, shape.key_value_heads, context + 1, width), runner.dtype)
        self._cache = runner.load_cache([empty] * (2 * shape.layers))
        self._pools = {graph_names.pool(n): np.ones((1, shape.neurons), np.bool_) for n in range(shape.layers)}
        self._logits: Array = np.zeros((1, 1, shape.vocabulary), runner.dtype)
        self._read(random_tokens(shape, context, seed=2), 0)
        ids = random_tokens(shape, _TOKENS, seed=3).reshape(_TOKENS, 1, 1)
        self._ids = itertools.cycle(ids)

    def _read(self, ids: Array, before: int) -> float:
        """Read tokens at a position; returns the share of neurons that the last one computed."""
        total = before + ids.shape[1]
        inputs = {
            graph_names.INPUT_IDS: ids,
            graph_names.ATTENTION_MASK: np.ones((1, total), np.int64),
            graph_names.POSITION_IDS: np.arange(before, total)[None],
            graph_names.PAST_LOGITS: self._logits[:, -1],
            **self._pools,
        }
        outputs, self._cache = self.runner.step(inputs, self._cache, self._fetch)
        self._logits = outputs[graph_names.LOGITS]
        return float(outputs[graph_names.ACTIVE].mean()) / self._neurons if self.runner.counts else 1.0

    def logits(self) -> Array:
        """Logits of the last step, or of the prompt's last token before any step."""
        return self._logits.astype(np.float32)

    def run(self) -> float:
        """Read each of the tokens once, all after the same prompt; returns the share of neurons that they computed."""
        return sum(self._read(next(self._ids), self._context) for _ in range(_TOKENS)) / _TOKENS


def _steps(
    timing: Timing, files: Files, shape: Shape, context: int, in_graph: bool
) -> Iterator[tuple[str, float | None, Steps]]:
    """Yield name, share of neurons and steps of every contender, the dense one first."""
    device: Device = "cuda" if timing.kernels.device.name == "cuda" else "cpu"
    captured = in_graph and device == "cuda"

    def execution(kernels: OrtKernels) -> Execution:
        return Execution(kernels=kernels, device=device, cuda_graph=captured)

    dense = Runner(files.dense.path, execution("bodies"), in_graph, counts=False)
    # The inputs are there, and nothing reads them.
    unused = [np.zeros(shape.neurons, np.float32)] * shape.layers
    yield DENSE, None, Steps(dense, shape, unused, context)
    sparse = Runner(files.ours.path, execution("native"), in_graph, counts=True)
    yield ours(None, ELEMENT), None, Steps(sparse, shape, unused, context)
    for fraction, thresholds in files.thresholds.items():
        yield ours(fraction, ELEMENT), fraction, Steps(sparse, shape, thresholds, context)


def _cache_bytes(shape: Shape, context: int) -> int:
    width = shape.hidden // shape.heads
    return 2 * shape.layers * shape.key_value_heads * width * (context + 1) * np.dtype(ELEMENT).itemsize


def _contenders(
    timing: Timing, files: Files, shape: Shape, context: int, in_graph: bool
) -> Iterator[tuple[Contender, Runner]]:
    """Create every contender with its steps.

    Raises:
        CladaError: One does not compute what the dense one does.
    """
    reference = None
    for name, fraction, steps in _steps(timing, files, shape, context, in_graph):
        steps.run()
        error = None
        if reference is None:
            reference = steps.logits()
        elif fraction is None:
            error = checked_error(name, steps.logits(), reference)
        is_ours = steps.runner.counts
        source = files.ours if is_ours else files.dense
        always = source.other_bytes + _cache_bytes(shape, context) + source.neuron_bytes / 3
        run = partial(Steps.run, steps)
        contender = Contender(name, run, always, 2 * source.neuron_bytes / 3, fraction, error, repeats=_TOKENS)
        yield contender, steps.runner


def _graph_seconds(runners: Sequence[Runner]) -> Callable[[Callable[[], float]], tuple[float, float]]:
    """Timer of the graphs alone: the time ONNX Runtime takes from the call until the device is done."""

    def timed(run: Callable[[], float]) -> tuple[float, float]:
        before = sum(runner.seconds for runner in runners)
        result = run()
        return sum(runner.seconds for runner in runners) - before, result

    return timed


def model_tables(
    timing: Timing, files: Files, shape: Shape, bandwidth: Callable[[], float], context: int = BenchSettings.context
) -> Iterator[Table | LeftOut]:
    """Time a model's decode: the graph alone, and the whole step with its copies; ratios are relative to dense."""
    for in_graph in timing.graphs:
        names = (IN_GRAPH, STEP_IN_GRAPH) if in_graph else (LAUNCHED, STEP_LAUNCHED)
        try:
            pairs = list(_contenders(timing, files, shape, context, in_graph))
        except CladaError as error:
            yield LeftOut(f"{shape.name}, {MODEL}, {names[0]}", str(error))
            continue
        contenders, runners = [pair[0] for pair in pairs], list({id(runner): runner for _, runner in pairs}.values())
        for phase, timed in zip(names, (_graph_seconds(runners), wall_seconds), strict=True):
            label = f"{shape.name} {MODEL}, {phase}"
            samples: dict[str, Samples] = measure(contenders, timing.rounds, bandwidth, label, timed)
            yield Table(shape.name, MODEL, phase, 1, context, rows(contenders, samples, DENSE))
