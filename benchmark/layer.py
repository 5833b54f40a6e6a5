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
from clada.benchmark.layer_graph import exact_threshold, layer_model, random_input, random_weights
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
        variants: Its graphs.
        dense: Session of the dense graph.
        int4: Session of the 4-bit graph.
        ours: Sessions of our op by the type its weights are held in.
    """

    weights: dict[str, Array]
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
    weights = random_weights(shape)
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        variants = write_variants(layer_model(weights), Path(folder))
        dense, int4 = (_session(graph, threads, None) for graph in (variants.dense, variants.int4))
        sessions = {kind: _session(variants.ours, threads, kind) for kind in WEIGHTS}
        yield Layer(weights, variants, dense, int4, sessions)


def _inputs(x: Array, threshold: Array, scale: float) -> dict[str, Array]:
    tokens, neurons = x.shape[1], len(threshold)
    return {
        "x": x,
        "threshold": threshold,
        "scale": np.full((1, tokens), scale, np.float32),
        "pool": np.ones((1, neurons), np.bool_),
    }


def _always(run: Callable[[], object], active: float) -> float:
    run()
    return active


def _dense_torch(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        hidden = functional.silu(functional.linear(x, weights["w_gate"])) * functional.linear(x, weights["w_up"])
        return hidden @ weights["w_down"]


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
    bound = Bound(session, _inputs(x, threshold, 0.0 if fraction is None else 1.0), ["y", "active", "score"])
    bound.run()
    results = bound.results()
    expected = neurons if fraction is None else round(fraction * neurons)
    if (results["active"] != expected).any():
        raise CladaError(f"{name} computed {results['active'].min()} neurons instead of {expected}")
    size = layer.variants.ours.neuron_bytes / (2 if kind == "bfloat16" else 1)
    return Contender(
        name,
        partial(_always, bound.run, expected / neurons),
        always_bytes=size / 3,
        active_bytes=2 * size / 3,
        target=fraction,
        error=checked_error(name, results["y"], reference) if fraction is None else None,
    )


def layer_contenders(layer: Layer, tokens: int, fractions: tuple[float, ...]) -> list[Contender]:
    """All contenders for a number of tokens at once; ours with these shares of neurons beside dense.

    Raises:
        CladaError: One of them does not compute what it should.
    """
    x = random_input(layer.weights["w_gate"].shape[1], tokens)
    inputs = _inputs(x, np.zeros(len(layer.weights["w_gate"]), np.float32), 0.0)
    contenders, reference = [], np.empty(0)
    for name, session, graph in (
        (REFERENCE, layer.dense, layer.variants.dense),
        (INT4, layer.int4, layer.variants.int4),
    ):
        bound = Bound(session, inputs, ["y"])
        bound.run()
        y = bound.results()["y"]
        reference = y if name == REFERENCE else reference
        run = partial(_always, bound.run, 1.0)
        contenders.append(Contender(name, run, always_bytes=graph.other_bytes, error=checked_error(name, y, reference)))
    tensors = {name: torch.from_numpy(weight) for name, weight in layer.weights.items()}
    call = partial(_dense_torch, tensors, torch.from_numpy(x))
    contenders.append(
        Contender(
            TORCH,
            partial(_always, call, 1.0),
            always_bytes=layer.variants.dense.other_bytes,
            error=checked_error(TORCH, call().numpy(), reference),
        )
    )
    contenders += [_ours(layer, kind, x, fraction, reference) for kind in layer.ours for fraction in (None, *fractions)]
    return contenders
