"""Everything that is timed, one table after the other: each op against torch, and the card's copy bandwidth."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from clada.benchmark.contender import Contender, ours
from clada.benchmark.precisions import BLOCKS
from clada.benchmark.report import Table, rows
from clada.benchmark.shapes import Shape
from clada.benchmark.timing import Samples, measure
from clada.errors import CladaError
from clada.ops import LOAD_SIGNAL, SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.record import Op
from clada.ops.sparse_ffn import weight_matrices
from clada.ops.torch import ACTIVATIONS, torch_op
from gpu_suite.device import Device, Run
from gpu_suite.kernels import Call, Kernels
from gpu_suite.layers import (
    Copies,
    bytes_needed,
    copies_of,
    count_of,
    exact_selection,
    name_of,
    random_layer,
    random_quantized_layer,
    random_x,
    selection,
)

# Of the copy: bytes, and how many times the card's last cache.
_FEWEST_COPIED = 1 << 29
_CACHES_COPIED = 8
# What starts and ends a time is far below this.
_LEAST_SECONDS = 2e-3
_MOST_TIMES = 100
_Weights = Mapping[str, torch.Tensor]
_Dense = Callable[[torch.Tensor, _Weights], torch.Tensor]
# Of the load signal's calls; their logits together are so many times the cache.
_KNOTS = 33
_LOAD_ATTRIBUTES = {"surprisal_weight": 0.5}
_CACHES_OF_LOGITS = 4
LAYER, PLAIN_LAYER, QUANTIZED_LAYER, LOAD = "layer", "layer without a gate", "quantized layer", "load signal"
IN_GRAPH, LAUNCHED, PREFILL = "decode in a CUDA graph", "decode, launched one by one", "prefill in a CUDA graph"
_PROMPT = 512
# What is measured at one shape only.
_SEVERAL_SEQUENCES = ("llama-3-8b", (4, 8))
_WITHOUT_A_GATE = "llama-3.2-1b"
# Tokens of quantized weights, and the dense layer that those are compared with.
_TOKENS_OF_QUANTIZED = "float16"


def copy_bandwidth(device: Device, cache_bytes: int) -> Callable[[], float]:
    """A function that measures the floor: the bytes a second of torch's copy of a tensor far larger than the cache."""
    size = max(_FEWEST_COPIED, _CACHES_COPIED * cache_bytes)
    source = torch.ones(size, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)

    def copy() -> float:
        target.copy_(source)
        return 0.0

    def measure() -> float:
        return 2 * size / device.timed(copy)[0]

    measure()
    return measure


def _times(run: Run, times: int, share: float) -> float:
    for _ in range(times):
        run()
    return share


def _estimated(device: Device, run: Run) -> float:
    def once() -> float:
        run()
        return 0.0

    device.timed(once)
    return device.timed(once)[0]


def contender(
    device: Device,
    name: str,
    launch: Callable[[], None],
    copies: int,
    graph: bool,
    *,
    always_bytes: float,
    active_bytes: float = 0,
    share: float = 1.0,
    target: float | None = None,
) -> Contender:
    """A contender that is launched, or replayed as a CUDA graph, as often as a time must take.

    Args:
        device: Where it runs.
        name: Of the contender.
        launch: Launches all copies once.
        copies: How many.
        graph: Whether to replay them as one graph.
        always_bytes: What a copy reads whatever is active.
        active_bytes: What comes on top when all neurons are read.
        share: Share of neurons that is read.
        target: Share of neurons that each token was asked to keep; None for dense ones.

    Raises:
        CladaError: A graph was asked for and the device has none.
    """
    run: Run = launch
    if graph:
        if device.captured is None:
            raise CladaError(f"{name} cannot be replayed as a graph: {device.name} has none")
        run = device.captured(launch)
    times = min(_MOST_TIMES, max(1, math.ceil(_LEAST_SECONDS / max(_estimated(device, run), 1e-9))))
    return Contender(
        name,
        lambda: _times(run, times, share),
        always_bytes,
        active_bytes,
        target,
        repeats=copies * times,
    )


def dense_names(copies: Copies) -> list[str]:
    """Names of torch's dense layers; the ratios are against the fastest of them."""
    name = name_of(copies.layer.dtype)
    if copies.layer.gated:
        return [f"cuBLAS dense {name}", f"cuBLAS dense, gate and up as one {name}"]
    return [f"cuBLAS dense {name}"]


def _three_products(x: torch.Tensor, weights: _Weights, activation: str) -> torch.Tensor:
    gate, up = weights["inward"].chunk(2)
    h = ACTIVATIONS[activation](functional.linear(x, gate)) * functional.linear(x, up)
    return functional.linear(h, weights["outward"])


def _two_products(x: torch.Tensor, weights: _Weights, activation: str) -> torch.Tensor:
    gate, up = functional.linear(x, weights["inward"]).chunk(2, -1)
    return functional.linear(ACTIVATIONS[activation](gate) * up, weights["outward"])


def _plain(x: torch.Tensor, weights: _Weights, activation: str) -> torch.Tensor:
    h = ACTIVATIONS[activation](functional.linear(x, weights["inward"], weights["b_in"]))
    return functional.linear(h, weights["outward"], weights["b_out"])


def dense_layers(copies: Copies) -> list[_Dense]:
    """Torch's dense layers, in the order of their names: the output of one copy."""
    functions = [_three_products, _two_products] if copies.layer.gated else [_plain]
    return [partial(function, activation=copies.layer.activation) for function in functions]


def _dense_contenders(kernels: Kernels, copies: Copies, x: torch.Tensor, graph: bool) -> list[Contender]:
    def run(layer: _Dense) -> None:
        with torch.inference_mode():
            for weights in copies.dense:
                layer(x, weights)

    size = weight_matrices(copies.layer.op) * copies.dense_matrix_bytes
    return [
        contender(kernels.device, name, partial(run, layer), len(copies.dense), graph, always_bytes=size)
        for name, layer in zip(dense_names(copies), dense_layers(copies), strict=True)
    ]


def _calls(kernels: Kernels, copies: Copies, x: torch.Tensor, chosen: _Weights) -> list[Call]:
    """One call a copy; the thresholds are in the order of its neurons."""
    return [
        Call(
            kernels,
            copies.layer.op,
            {"x": x, **weights, **chosen, "threshold": torch.roll(chosen["threshold"], number)},
            copies.layer.attributes,
        )
        for number, weights in enumerate(copies.ours)
    ]


def _launch(calls: Sequence[Call]) -> None:
    for call in calls:
        call.launch()


def _ours(kernels: Kernels, copies: Copies, x: torch.Tensor, fraction: float | None, graph: bool) -> Contender:
    """Our op at an exact share of neurons for each token, or dense.

    Raises:
        CladaError: Another number of neurons was kept than was asked for.
    """
    layer = copies.layer
    name = ours(fraction, layer.precision)
    if fraction is None:
        chosen = selection(layer, None, np.zeros(x.shape[:2], np.float32))
        expected = layer.shape.neurons
    else:
        chosen = exact_selection(layer, x, fraction)
        expected = round(fraction * layer.shape.neurons)
    calls = _calls(kernels, copies, x, chosen)
    _launch(calls)
    kernels.device.synchronize()
    for call in calls:
        active = call.outputs["active"]
        if not bool((active == expected).all()):
            raise CladaError(f"{name} computed {active.flatten().tolist()} neurons instead of {expected}")
    # Several tokens read what any of them keeps.
    share = float((calls[0].outputs["score"] > 0).any(dim=0).double().mean())
    return contender(
        kernels.device,
        name,
        partial(_launch, calls),
        len(calls),
        graph,
        share=share,
        target=fraction,
        always_bytes=copies.matrix_bytes,
        active_bytes=(weight_matrices(layer.op) - 1) * copies.matrix_bytes,
    )


def layer_contenders(
    kernels: Kernels,
    copies: Copies,
    size: tuple[int, int],
    fractions: Sequence[float | None],
    graph: bool,
) -> list[Contender]:
    """All contenders for x of [B, S]; ours with these shares of neurons, None for dense.

    Raises:
        CladaError: Ours kept another number of neurons than was asked for.
    """
    x = random_x(copies.layer, *size)
    sparse = [_ours(kernels, copies, x, fraction, graph) for fraction in fractions]
    return _dense_contenders(kernels, copies, x, graph) + sparse


def torch_name(element: str) -> str:
    """Name of the same in torch."""
    return f"torch {element}"


def _load_inputs(vocabulary: int, dtype: torch.dtype, device: str, count: int) -> list[dict[str, torch.Tensor]]:
    """So many calls' inputs, batch 1, each with logits of its own."""
    generator = torch.Generator(device).manual_seed(vocabulary)
    fixed: dict[str, Any] = {
        "token": np.array([vocabulary // 2]),
        "surprisal_knots": np.linspace(0, 2 * np.log(vocabulary), _KNOTS, dtype=np.float32),
        "entropy_knots": np.linspace(0, np.log(vocabulary), _KNOTS, dtype=np.float32),
        "scale_knots": np.array([1.3, 1.2, 1.0, 0.8, 0.8], np.float32),
    }
    shared = {name: torch.from_numpy(array).to(device) for name, array in fixed.items()}
    logits = (3 * torch.randn((count, 1, vocabulary), generator=generator, device=device)).to(dtype)
    return [{"logits": logits[number], **shared} for number in range(count)]


def _torch_load(inputs: Sequence[dict[str, torch.Tensor]]) -> None:
    with torch.inference_mode():
        for tensors in inputs:
            torch_op(LOAD_SIGNAL)(*tensors.values(), *_LOAD_ATTRIBUTES.values())


def load_contenders(kernels: Kernels, vocabulary: int, element: str, cache_bytes: int, graph: bool) -> list[Contender]:
    """All contenders for one sequence; together their logits are larger than the cache, several times."""
    dtype = getattr(torch, element)
    size = vocabulary * dtype.itemsize
    inputs = _load_inputs(vocabulary, dtype, kernels.device.name, -(-_CACHES_OF_LOGITS * cache_bytes // size))
    calls = [Call(kernels, LOAD_SIGNAL, tensors, _LOAD_ATTRIBUTES) for tensors in inputs]
    return [
        contender(kernels.device, name, run, len(inputs), graph, always_bytes=size)
        for name, run in (
            (torch_name(element), partial(_torch_load, inputs)),
            (f"ours {element}", partial(_launch, calls)),
        )
    ]


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
    """Parts that were not measured, and why."""

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
