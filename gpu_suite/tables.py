"""Everything that is timed, one table after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from clada.benchmark.contender import Contender
from clada.benchmark.precisions import BLOCKS
from clada.benchmark.report import Table, rows
from clada.benchmark.shapes import Shape
from clada.benchmark.timing import Samples, measure
from clada.ops import SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.record import Op
from gpu_suite.bandwidth import copy_bandwidth
from gpu_suite.copies import Copies, bytes_needed, copies_of, count_of
from gpu_suite.layer import dense_names, layer_contenders
from gpu_suite.layer_data import random_layer, random_quantized_layer
from gpu_suite.library import Kernels
from gpu_suite.load_signal import load_contenders, torch_name

LAYER, PLAIN_LAYER, QUANTIZED_LAYER, LOAD = "layer", "layer without a gate", "quantised layer", "load signal"
IN_GRAPH, LAUNCHED, PREFILL = "decode in a CUDA graph", "decode, launched one by one", "prefill in a CUDA graph"
_PROMPT = 512
# What is measured at one shape only.
_SEVERAL_SEQUENCES = ("llama-3-8b", (4, 8))
_WITHOUT_A_GATE = "llama-3.2-1b"
# Tokens of quantised weights, and the dense layer that those are compared with.
_TOKENS_OF_QUANTIZED = "float16"


@dataclass(frozen=True)
class Timing:
    """How everything is timed.

    Args:
        kernels: What is timed.
        cache_bytes: The card's last cache.
        free_bytes: How much memory may be used.
        fractions: Shares of neurons that are kept.
        elements: Types of weights and tokens.
        quantized: Other precisions of weights.
        rounds: How often.
    """

    kernels: Kernels
    cache_bytes: int
    free_bytes: Callable[[], int]
    fractions: tuple[float, ...] = (1.0, 0.6, 0.4, 0.2)
    elements: tuple[str, ...] = ("float16", "bfloat16")
    quantized: tuple[str, ...] = ("int4", "int8")
    rounds: int = 30

    @property
    def graphs(self) -> tuple[bool, ...]:
        """With CUDA graphs, where there are any, and without."""
        return (False,) if self.kernels.device.captured is None else (True, False)


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    what: str
    why: str


def _samples(
    timing: Timing, contenders: Sequence[Contender], label: str, bandwidth: Callable[[], float] | None
) -> dict[str, Samples]:
    return measure(contenders, timing.rounds, bandwidth, label, timing.kernels.device.timed)


def _fastest(names: Sequence[str], samples: dict[str, Samples]) -> str:
    return min(names, key=lambda name: sorted(samples[name].seconds)[len(samples[name].seconds) // 2])


def _layer_table(
    timing: Timing, copies: Copies, size: tuple[int, int], graph: bool, bandwidth: Callable[[], float] | None
) -> Table:
    """Ratios are against the fastest of torch's dense layers."""
    shape, of_floats = copies.layer.shape, LAYER if copies.layer.gated else PLAIN_LAYER
    what = QUANTIZED_LAYER if copies.layer.precision in BLOCKS else of_floats
    prefill = size[1] > 1
    phase = PREFILL if prefill else IN_GRAPH if graph else LAUNCHED
    contenders = layer_contenders(timing.kernels, copies, size, (None,) if prefill else timing.fractions, graph)
    samples = _samples(timing, contenders, f"{shape.name} {what}, {phase}", bandwidth)
    reference = _fastest(dense_names(copies), samples)
    return Table(shape.name, what, phase, size[0] * size[1], 0, rows(contenders, samples, reference))


def _layer_tables(
    timing: Timing, op: Op, shape: Shape, element: str, bandwidth: Callable[[], float], quantized: str | None = None
) -> Iterator[Table | LeftOut]:
    """Of one op and shape; `quantized` is the precision of its weights where that is not the tokens' type."""
    dtype, device, precision = getattr(torch, element), timing.kernels.device.name, quantized or element
    count, dense_count = (count_of(op, shape, name, timing.cache_bytes) for name in (precision, element))
    needed, free = bytes_needed(op, shape, precision, element, count, dense_count), timing.free_bytes()
    if needed > free:
        why = f"takes {needed / 1e9:.1f} GB of the card's memory, of which {free / 1e9:.1f} GB are free"
        yield LeftOut(f"{shape.name}, {op.name}, {precision}", why)
        return
    if quantized:
        layer = random_quantized_layer(op, shape, dtype, quantized, device)
    else:
        layer = random_layer(op, shape, dtype, device)
    copies = copies_of(layer, count, dense_count)
    batches = (1, *_SEVERAL_SEQUENCES[1]) if shape.name == _SEVERAL_SEQUENCES[0] and op is SPARSE_GATED_FFN else (1,)
    for batch in batches:
        for graph in timing.graphs:
            yield _layer_table(timing, copies, (batch, 1), graph, bandwidth)
    if op is SPARSE_GATED_FFN:
        yield _layer_table(timing, copies, (1, _PROMPT), timing.graphs[0], None)


def _load_table(timing: Timing, vocabulary: int, element: str, graph: bool, bandwidth: Callable[[], float]) -> Table:
    contenders = load_contenders(timing.kernels, vocabulary, element, timing.cache_bytes, graph)
    phase = IN_GRAPH if graph else LAUNCHED
    samples = _samples(timing, contenders, f"{LOAD} {vocabulary}, {phase}", bandwidth)
    return Table(f"V={vocabulary}", LOAD, phase, 1, 0, rows(contenders, samples, torch_name(element)))


def tables(timing: Timing, shapes: Sequence[Shape]) -> Iterator[Table | LeftOut]:
    """Time every op at the sizes of these models."""
    bandwidth = copy_bandwidth(timing.kernels.device, timing.cache_bytes)
    for element in timing.elements:
        for shape in shapes:
            yield from _layer_tables(timing, SPARSE_GATED_FFN, shape, element, bandwidth)
            if shape.name == _WITHOUT_A_GATE:
                yield from _layer_tables(timing, SPARSE_FFN, shape, element, bandwidth)
        for vocabulary in sorted({shape.vocabulary for shape in shapes if shape.model}):
            for graph in timing.graphs:
                yield _load_table(timing, vocabulary, element, graph, bandwidth)
    for precision in timing.quantized:
        for shape in shapes:
            yield from _layer_tables(timing, SPARSE_GATED_FFN, shape, _TOKENS_OF_QUANTIZED, bandwidth, precision)
