"""Benchmark of one feed-forward layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from clada.benchmark.contender import FARTHEST_OF_OWN, TORCH, Contender, always, checked_error, dense, ours
from clada.benchmark.layer_graph import (
    copies_of,
    exact_threshold,
    layer_model,
    numbered,
    random_input,
    random_weights,
    reordered,
)
from clada.benchmark.layer_output import layer_output, weights_of_ours, weights_of_products
from clada.benchmark.sessions import Bound, execution
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import Shape
from clada.benchmark.variants import Variants, write_variants
from clada.errors import CladaError
from clada.ops.record import Array
from clada.runtime.models.ort_cpu import create_session


@dataclass(frozen=True)
class Layer:
    """One layer in every form that is compared.

    Args:
        weights: f32[F, D] by the op's input names.
        copies: Number of copies of it in each graph.
        variants: Its graphs.
        dense: Sessions of the dense graphs by the precision of their weights.
        ours: Sessions of our op by the precision its weights are held in.
        with_torch: Whether torch is compared too.
    """

    weights: dict[str, Array]
    copies: int
    variants: Variants
    dense: dict[str, onnxruntime.InferenceSession]
    ours: dict[str, onnxruntime.InferenceSession]
    with_torch: bool


@contextmanager
def opened_layer(shape: Shape, settings: BenchSettings) -> Iterator[Layer]:
    """Make a layer; its files are gone when the context ends."""
    weights, copies, threads = random_weights(shape), copies_of(shape), settings.threads
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        variants = write_variants(layer_model(weights, copies), Path(folder), settings.weights)
        without = {
            precision: create_session(graph.path, execution(threads, None))[0]
            for precision, graph in variants.dense.items()
        }
        sessions = {
            precision: create_session(variants.of(precision).path, execution(threads, precision))[0]
            for precision in settings.weights
        }
        yield Layer(weights, copies, variants, without, sessions, "float32" in settings.weights)


def _inputs(x: Array, threshold: Array, scale: float, copies: int) -> dict[str, Array]:
    tokens, neurons = x.shape[1], len(threshold)
    return {name: reordered(threshold, copy) for copy, name in enumerate(numbered("threshold", copies))} | {
        "x": x,
        "scale": np.full((1, tokens), scale, np.float32),
        "pool": np.ones((1, neurons), np.bool_),
    }


def _dense_torch(layers: list[dict[str, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    """Dense layer in torch, every copy of it; returns the output of the last."""
    with torch.inference_mode():
        for weights in layers:
            hidden = functional.silu(functional.linear(x, weights["w_gate"])) * functional.linear(x, weights["w_up"])
            y = hidden @ weights["w_down"]
    return y


def _ours(layer: Layer, precision: str, own: Mapping[str, Array], x: Array, fraction: float | None) -> Contender:
    """Contender of our op, dense or at an exact share of neurons.

    Args:
        layer: The layer.
        precision: Precision of its weights.
        own: The weights f32[F, D] in that precision.
        x: Tokens f32[1, S, D].
        fraction: The share; None is dense.

    Raises:
        CladaError: Another number of neurons was kept than was asked for, or the output is not that of the layer.
    """
    name, neurons = ours(fraction, precision), len(own["w_gate"])
    threshold = np.zeros(neurons, np.float32) if fraction is None else exact_threshold(own, x, fraction)
    names = [value for output in ("y", "active", "score") for value in numbered(output, layer.copies)]
    inputs = _inputs(x, threshold, 0.0 if fraction is None else 1.0, layer.copies)
    bound = Bound(layer.ours[precision], inputs, names)
    bound.run()
    results = bound.results()
    expected = neurons if fraction is None else round(fraction * neurons)
    for active in numbered("active", layer.copies):
        if (results[active] != expected).any():
            raise CladaError(f"{name} computed {results[active].min()} neurons instead of {expected}")
    size = layer.variants.neuron_bytes(precision) / layer.copies
    output = layer_output(own, x, threshold)
    return Contender(
        name,
        partial(always, bound.run, expected / neurons),
        always_bytes=size / 3,
        active_bytes=2 * size / 3,
        target=fraction,
        error=max(checked_error(name, results[y], output, FARTHEST_OF_OWN) for y in numbered("y", layer.copies)),
        repeats=layer.copies,
    )


def _dense(layer: Layer, precision: str, x: Array) -> Contender:
    """Contender of ONNX Runtime's dense graph.

    Raises:
        CladaError: The output is not that of the layer.
    """
    name, threshold = dense(precision), np.zeros(len(layer.weights["w_gate"]), np.float32)
    bound = Bound(layer.dense[precision], _inputs(x, threshold, 0.0, layer.copies), numbered("y", layer.copies))
    bound.run()
    # The first copy's: another order of neurons has other blocks along them.
    y = bound.results()[numbered("y", layer.copies)[0]]
    output = layer_output(weights_of_products(layer.weights, precision), x, threshold)
    return Contender(
        name,
        partial(always, bound.run, 1.0),
        always_bytes=layer.variants.dense[precision].other_bytes / layer.copies,
        error=checked_error(name, y, output, FARTHEST_OF_OWN),
        repeats=layer.copies,
    )


def _torch(layer: Layer, x: Array) -> Contender:
    """Contender of torch's dense layer.

    Raises:
        CladaError: The output is not that of the layer.
    """
    # clone: each copy reads weights of its own here too.
    layers = [
        {name: torch.from_numpy(weight).clone() for name, weight in layer.weights.items()} for _ in range(layer.copies)
    ]
    call = partial(_dense_torch, layers, torch.from_numpy(x))
    output = layer_output(layer.weights, x, np.zeros(len(layer.weights["w_gate"]), np.float32))
    return Contender(
        TORCH,
        partial(always, call, 1.0),
        always_bytes=layer.variants.dense["float32"].other_bytes / layer.copies,
        error=checked_error(TORCH, call().numpy(), output, FARTHEST_OF_OWN),
        repeats=layer.copies,
    )


def layer_contenders(layer: Layer, tokens: int, fractions: tuple[float, ...]) -> list[Contender]:
    """All contenders for a number of tokens at once; ours with these shares of neurons beside dense.

    Raises:
        CladaError: One of them does not compute what it should.
    """
    x = random_input(layer.weights["w_gate"].shape[1], tokens)
    contenders = [_dense(layer, precision, x) for precision in layer.dense]
    if layer.with_torch:
        contenders.append(_torch(layer, x))
    for precision in layer.ours:
        own = weights_of_ours(layer.weights, precision)
        contenders += [_ours(layer, precision, own, x, fraction) for fraction in (None, *fractions)]
    return contenders
