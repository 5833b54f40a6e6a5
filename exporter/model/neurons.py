"""What a layer's neurons do: their activations, and the thresholds that follow from a weight for each."""

import torch
from torch import Tensor

from clada.exporter.model.patch import SparseLayer
from clada.ops import SPARSE_GATED_FFN
from clada.ops.torch import ACTIVATIONS


def activations(layer: SparseLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The activation a and what it is multiplied with, both [..., F], for x [..., D]."""
    weights = {name: layer.get_parameter(name) for name in layer.weight_names}
    act = ACTIVATIONS[layer.activation]
    if layer.op is SPARSE_GATED_FFN:
        a = act(torch.nn.functional.linear(x, weights["w_gate"]))
        return a, torch.nn.functional.linear(x, weights["w_up"])
    a = act(torch.nn.functional.linear(x, weights["w_in"], weights["b_in"]))
    return a, torch.ones_like(a)


def matrix_names(layer: SparseLayer) -> list[str]:
    """The layer's weight matrices: those that lead into the neurons, then the one that leads out."""
    return [name for name in layer.weight_names if name.startswith("w_")]


def outward_matrix(layer: SparseLayer) -> Tensor:
    """T[F, D]: row i is what neuron i writes."""
    return layer.get_parameter(matrix_names(layer)[-1])


def threshold(level: float, importance: Tensor) -> Tensor:
    """f32[F], level / c_i; a neuron that adds nothing gets the largest finite threshold."""
    largest = torch.finfo(torch.float32).max
    quotient = torch.full_like(importance, level) / importance
    return torch.nan_to_num(quotient, nan=0.0, posinf=largest).clamp(max=largest).float()
