"""What is timed for one feed-forward layer: ours, and torch's dense layer on cuBLAS in the type of the tokens."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from clada.benchmark.contender import Contender, ours
from clada.errors import CladaError
from clada.ops.sparse_ffn import weight_matrices
from clada.ops.torch import ACTIVATIONS
from gpu_suite.copies import Copies
from gpu_suite.layer_data import exact_selection, name_of, random_x, selection
from gpu_suite.library import Call, Kernels
from gpu_suite.repeats import contender

_Weights = Mapping[str, torch.Tensor]
_Dense = Callable[[torch.Tensor, _Weights], torch.Tensor]


def dense_names(copies: Copies) -> list[str]:
    """What torch's dense layers are called; the ratios are against the fastest of them."""
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
