"""What is timed for one feed-forward layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from clada.benchmark.contender import INT4, REFERENCE, TORCH, Contender, checked_error, ours
from clada.benchmark.layer_graph import (
    copies_of,
    exact_threshold,
    layer_model,
    numbered,
    random_input,
    random_weights,
    reordered,
)
from clada.benchmark.sessions import Bound, execution
from clada.benchmark.shapes import Shape
from clada.benchmark.variants import Graph, Variants, write_variants
from clada.plugins.errors import CladaError
from clada.plugins.onnxruntime import WEIGHTS
from clada.plugins.ops.record import Array
from clada.runtime.backends.onnxruntime import create_session


@dataclass(frozen=True)
class Layer:
    """A layer in every form that is compared.

    Args:
        weights: f32[F, D] by the op's input names.
        copies: How many times each graph holds it.
        variants: Its graphs.
        dense: Session of the dense graph.
        int4: Session of the 4-bit graph.
        ours: Sessions of our op by the type its weights are held in.
    """

    weights: dict[str, Array]
    copies: int
    variants: Variants
    dense: onnxruntime.InferenceSession
    int4: onnxruntime.InferenceSession
    ours: dict[str, onnxruntime.InferenceSession]


def _session(graph: Graph, threads: int, weights: str | None) -> onnxruntime.InferenceSession:
    session, _ = create_session(graph.path, execution(threads, weights))
    return session


@contextmanager
def opened_layer(shape: Shape, threads: int) -> Iterator[Layer]:
    """Make a layer; its files are gone when the context ends."""
    weights, copies = random_weights(shape), copies_of(shape)
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        variants = write_variants(layer_model(weights, copies), Path(folder))
        dense, int4 = (_session(graph, threads, None) for graph in (variants.dense, variants.int4))
        sessions = {kind: _session(variants.ours, threads, kind) for kind in WEIGHTS}
        yield Layer(weights, copies, variants, dense, int4, sessions)


def _inputs(x: Array, threshold: Array, scale: float, copies: int) -> dict[str, Array]:
    tokens, neurons = x.shape[1], len(threshold)
    return {name: reordered(threshold, copy) for copy, name in enumerate(numbered("threshold", copies))} | {
        "x": x,
        "scale": np.full((1, tokens), scale, np.float32),
        "pool": np.ones((1, neurons), np.bool_),
    }


def _always(run: Callable[[], object], active: float) -> float:
    run()
    return active


def _dense_torch(layers: list[dict[str, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    """Every copy of the layer; the output of the last."""
    with torch.inference_mode():
        for weights in layers:
            hidden = functional.silu(functional.linear(x, weights["w_gate"])) * functional.linear(x, weights["w_up"])
            y = hidden @ weights["w_down"]
    return y


def _ours(layer: Layer, kind: str, x: Array, fraction: float | None, reference: Array) -> Contender:
    """Our op, dense or at an exact share of neurons; kind is the type of its weights.

    Raises:
        CladaError: Another number of neurons was kept than was asked for.
    """
    name, session = ours(fraction, kind), layer.ours[kind]
    neurons = len(layer.weights["w_gate"])
    threshold = np.zeros(neurons, np.float32)
    if fraction is not None:
        threshold = exact_threshold(layer.weights, x, fraction)
    names = [value for output in ("y", "active", "score") for value in numbered(output, layer.copies)]
    bound = Bound(session, _inputs(x, threshold, 0.0 if fraction is None else 1.0, layer.copies), names)
    bound.run()
    results = bound.results()
    expected = neurons if fraction is None else round(fraction * neurons)
    for active in numbered("active", layer.copies):
        if (results[active] != expected).any():
            raise CladaError(f"{name} computed {results[active].min()} neurons instead of {expected}")
    size = layer.variants.ours.neuron_bytes / layer.copies / (2 if kind == "bfloat16" else 1)
    return Contender(
        name,
        partial(_always, bound.run, expected / neurons),
        always_bytes=size / 3,
        active_bytes=2 * size / 3,
        target=fraction,
        error=checked_error(name, results["y.0"], reference) if fraction is None else None,
        repeats=layer.copies,
    )


def layer_contenders(layer: Layer, tokens: int, fractions: tuple[float, ...]) -> list[Contender]:
    """All contenders for a number of tokens at once; ours with these shares of neurons beside dense.

    Raises:
        CladaError: One of them does not compute what it should.
    """
    x = random_input(layer.weights["w_gate"].shape[1], tokens)
    inputs = _inputs(x, np.zeros(len(layer.weights["w_gate"]), np.float32), 0.0, layer.copies)
    contenders, reference = [], np.empty(0)
    for name, session, graph in (
        (REFERENCE, layer.dense, layer.variants.dense),
        (INT4, layer.int4, layer.variants.int4),
    ):
        bound = Bound(session, inputs, numbered("y", layer.copies))
        bound.run()
        y = bound.results()["y.0"]
        reference = y if name == REFERENCE else reference
        contenders.append(
            Contender(
                name,
                partial(_always, bound.run, 1.0),
                always_bytes=graph.other_bytes / layer.copies,
                error=checked_error(name, y, reference),
                repeats=layer.copies,
            )
        )
    # clone: each copy reads weights of its own here too.
    layers = [
        {name: torch.from_numpy(weight).clone() for name, weight in layer.weights.items()} for _ in range(layer.copies)
    ]
    call = partial(_dense_torch, layers, torch.from_numpy(x))
    contenders.append(
        Contender(
            TORCH,
            partial(_always, call, 1.0),
            always_bytes=layer.variants.dense.other_bytes / layer.copies,
            error=checked_error(TORCH, call().numpy(), reference),
            repeats=layer.copies,
        )
    )
    contenders += [_ours(layer, kind, x, fraction, reference) for kind in layer.ours for fraction in (None, *fractions)]
    return contenders
