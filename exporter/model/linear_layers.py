"""Linear layers of every kind as torch's own."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def as_linear(layer: Conv1D) -> nn.Linear:
    """Linear layer of the same function as GPT-2's, whose weight T[D, N] lies the other way."""
    inputs, outputs = layer.weight.shape
    with torch.device("meta"):  # no weights that are drawn only to be replaced
        linear = nn.Linear(inputs, outputs, dtype=layer.weight.dtype)
    linear.weight = nn.Parameter(layer.weight.data.t().contiguous(), requires_grad=layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear


def unify_linears(model: nn.Module) -> None:
    """Replace a model's linear layers, in place, by torch's own where they are of another kind."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(name, as_linear(module))
