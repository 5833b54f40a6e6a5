"""A feed-forward layer of real sizes on the device: random weights, tokens, and thresholds that keep an exact share."""

from dataclasses import dataclass

import numpy as np
import torch

from clada.benchmark.shapes import Shape
from clada.benchmark.thresholds import exact_share
from clada.plugins.ops import SPARSE_GATED_FFN
from clada.plugins.ops.activations import ACTIVATIONS
from clada.plugins.ops.record import Array, Op

# What each op is measured with; a ReLU is zero for half of the neurons, so that no larger share could be kept.
_ACTIVATION = {True: "silu", False: "gelu"}


@dataclass(frozen=True)
class Layer:
    """One layer.

    Args:
        op: SparseGatedFFN or SparseFFN.
        shape: Its sizes.
        activation: Name of its activation.
        weights: Weights and biases by the op's input names, on the device.
    """

    op: Op
    shape: Shape
    activation: str
    weights: dict[str, torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and tokens."""
        return next(iter(self.weights.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(iter(self.weights.values())).device

    @property
    def inward(self) -> torch.Tensor:
        """The matrix [F, D] that the activations are of."""
        return self.weights["w_gate" if self.op is SPARSE_GATED_FFN else "w_in"]


def random_layer(op: Op, shape: Shape, dtype: torch.dtype, device: str) -> Layer:
    """Weights scaled so that activations are of the order of 1; the same at each call."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = {"F": shape.neurons, "D": shape.hidden}
    weights = {}
    for spec in op.inputs:
        if spec.name == "x" or spec.dtype != "T":
            continue
        size = [sizes[axis] for axis in spec.axes]
        factor = shape.hidden**-0.5 if len(size) == 2 else 0.25
        weights[spec.name] = (torch.randn(size, generator=generator, device=device) * factor).to(dtype)
    return Layer(op, shape, _ACTIVATION[op is SPARSE_GATED_FFN], weights)


def random_x(layer: Layer, batch: int, tokens: int) -> torch.Tensor:
    """Tokens T[B, S, D], the same at each call."""
    generator = torch.Generator(layer.device).manual_seed(1)
    size = (batch, tokens, layer.shape.hidden)
    return torch.randn(size, generator=generator, device=layer.device).to(layer.dtype)


def magnitudes(layer: Layer, x: torch.Tensor) -> Array:
    """|a| of every neuron, float64[B, F], for x T[B, 1, D]."""
    z = x[:, 0].double() @ layer.inward.double().T
    if "b_in" in layer.weights:
        z += layer.weights["b_in"].double()
    return np.abs(ACTIVATIONS[layer.activation].reference(z.cpu().numpy()))


def selection(
    layer: Layer, threshold: Array | None, scale: Array, pool: Array | None = None
) -> dict[str, torch.Tensor]:
    """The inputs that choose neurons: thresholds (0 where None), scale f32[B, S], and the pool (all where None)."""
    neurons = layer.shape.neurons
    arrays = {
        "threshold": np.zeros(neurons, np.float32) if threshold is None else threshold,
        "scale": scale,
        "pool": np.ones((len(scale), neurons), np.bool_) if pool is None else pool,
    }
    return {name: torch.from_numpy(array).to(layer.device) for name, array in arrays.items()}


def exact_selection(layer: Layer, x: torch.Tensor, fraction: float) -> dict[str, torch.Tensor]:
    """What keeps exactly this share of neurons for each token of x T[B, 1, D]."""
    threshold, scale = exact_share(magnitudes(layer, x), fraction)
    return selection(layer, threshold, scale[:, None])
