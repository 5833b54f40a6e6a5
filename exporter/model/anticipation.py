"""Anticipation: the difficulty of the current token, predicted from the hidden state by a linear probe."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from clada.ops import graph_names


def piecewise_linear(value: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate values at knots (ascending), constant outside; a sum of clipped ramps, as ONNX has no search."""
    widths = knots.diff().clamp_min(torch.finfo(torch.float32).tiny)
    along = ((value.unsqueeze(-1) - knots[:-1]) / widths).clamp(0, 1)
    return values[0] + (along * values.diff()).sum(-1)


@dataclass(frozen=True)
class Anticipation:
    """Probe of one site's input, and the factor on the scale that follows from it, there and at the sites above.

    Args:
        site: Index of the layer whose feed-forward network's input is read, or of the product whose input is.
        weight: f32[D].
        load_weight: f32 scalar, of the load.
        bias: f32 scalar; the sum predicts the log of the KL divergence that sparsity costs at this token.
        knots: f32[M], predictions, ascending.
        factors: f32[M], positive and non-increasing: what the scale is multiplied with at each knot.
    """

    site: int
    weight: Tensor
    load_weight: Tensor
    bias: Tensor
    knots: Tensor
    factors: Tensor

    def tensors(self) -> list[Tensor]:
        """Calibrated tensors, in the order of the fields."""
        return [self.weight, self.load_weight, self.bias, self.knots, self.factors]

    def predicted(self, x: Tensor, load: Tensor) -> Tensor:
        """The predicted log KL divergence [B, S] for x T[B, S, D] and load f32[B, S]."""
        return x.float() @ self.weight + load * self.load_weight + self.bias

    def refined(self, scale: Tensor, x: Tensor, load: Tensor) -> Tensor:
        """Scale f32[B, S] from this site on; where it is dense or padding it stays so."""
        factor = piecewise_linear(self.predicted(x, load), self.knots, self.factors)
        return torch.where(scale > 0, scale * factor, scale)


def named_tensors(anticipations: Iterable[Anticipation]) -> dict[str, Tensor]:
    """Calibrated tensors, by their names in graphs and files."""
    return {
        name: tensor
        for anticipation in anticipations
        for name, tensor in zip(graph_names.anticipation(anticipation.site), anticipation.tensors(), strict=True)
    }


def from_named(sites: Iterable[int], tensor: Callable[[str], Tensor]) -> tuple[Anticipation, ...]:
    """Create the anticipations at sites from tensors by name: see `named_tensors`."""
    return tuple(Anticipation(site, *map(tensor, graph_names.anticipation(site))) for site in sites)
