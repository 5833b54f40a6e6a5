"""What a layer's neurons do on calibration text: how much each adds, and the thresholds that follow."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clada.exporter.patch import SparseLayer
from clada.plugins.ops import SPARSE_GATED_FFN
from clada.plugins.torch import ACTIVATIONS, torch_op

# A neuron's importance c_i, by which its threshold is divided: what it adds to the output, or the plain CATS rule.
IMPORTANCES = ("contribution", "activation")
_RESOLUTION = np.linspace(0, 1, 1001)


@dataclass(frozen=True)
class NeuronStatistics:
    """Of one layer.

    Args:
        importance: f64[F], c_i.
        levels: f64[1001], quantiles of |a_i| * c_i over all neurons and tokens.
    """

    importance: Tensor
    levels: np.ndarray

    def level(self, sparsity: float) -> float:
        """tau: the value of |a_i| * c_i below which this share of neurons falls."""
        return float(np.interp(sparsity, _RESOLUTION, self.levels))

    def threshold(self, sparsity: float) -> Tensor:
        """f32[F], tau / c_i; a neuron that adds nothing gets the largest finite threshold."""
        level = self.level(sparsity)
        largest = torch.finfo(torch.float32).max
        quotient = torch.full_like(self.importance, level) / self.importance
        return torch.nan_to_num(quotient, nan=0.0, posinf=largest).clamp(max=largest).float()


def activations(layer: SparseLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The activation a and what it is multiplied with, both [..., F], for x [..., D]."""
    weights = {name: layer.get_parameter(name) for name in layer.weight_names}
    act = ACTIVATIONS[layer.activation]
    if layer.op is SPARSE_GATED_FFN:
        a = act(torch.nn.functional.linear(x, weights["w_gate"]))
        return a, torch.nn.functional.linear(x, weights["w_up"])
    a = act(torch.nn.functional.linear(x, weights["w_in"], weights["b_in"]))
    return a, torch.ones_like(a)


@torch.no_grad()
def neuron_statistics(layer: SparseLayer, batches: list[Tensor], importance: str) -> NeuronStatistics:
    """Measure a layer on its own inputs.

    Args:
        layer: The layer.
        batches: Its inputs, [T, D] each.
        importance: One of IMPORTANCES. "contribution" is c_i = ||w_out_i|| * rms(up_i), which estimates the norm of
            what neuron i adds to the output for a unit of activation; "activation" is c_i = 1.
    """
    magnitudes, squares, tokens = [], torch.zeros(layer.neurons, dtype=torch.float64), 0
    for x in batches:
        a, up = activations(layer, x)
        magnitudes.append(a.abs())
        squares += up.double().square().sum(0)
        tokens += len(x)
    if importance == "contribution":
        outward = layer.get_parameter([name for name in layer.weight_names if name.startswith("w_")][-1])
        c = outward.double().norm(dim=1) * (squares / tokens).sqrt()
    else:
        c = torch.ones(layer.neurons, dtype=torch.float64)
    weighted = np.concatenate([(m * c).float().numpy().ravel() for m in magnitudes])
    return NeuronStatistics(c, np.quantile(weighted, _RESOLUTION))


@torch.no_grad()
def relative_error(layer: SparseLayer, batches: list[Tensor], threshold: Tensor) -> float:
    """CETT: ||what the threshold drops|| / ||the layer's dense output||, mean over tokens."""
    ratios = []
    for x in batches:
        pool = torch.ones(1, layer.neurons, dtype=torch.bool)
        weights = [layer.get_parameter(name) for name in layer.weight_names]
        dense, sparse = (
            torch_op(layer.op)(
                x.unsqueeze(0), *weights, threshold, torch.full((1, len(x)), scale), pool, layer.activation
            )[0]
            for scale in (0.0, 1.0)
        )
        ratios.append(((dense - sparse).norm(dim=-1) / dense.norm(dim=-1)).flatten())
    return float(torch.cat(ratios).mean())
