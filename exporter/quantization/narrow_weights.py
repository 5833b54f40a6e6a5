"""Rounding of a model's matrices to bfloat16, which the file holds them in, before anything is calibrated."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clada.exporter.model.held_weights import HeldTensor, HoldingModule, held_weight
from clada.exporter.model.products import Product
from clada.exporter.quantization.quantize import rows_at_a_time
from clada.ops.record import NARROW_TYPE

WEIGHTS_IN: torch.dtype = getattr(torch, NARROW_TYPE)


@torch.no_grad()
def narrow_weights(model: Any, products: Sequence[Product], report: Callable[[str], None]) -> None:
    """Round the matrices of products and the input embedding in place; those in bfloat16 stay what they are.

    The model computes with the rounded values from then on, in the type that it is in.

    Args:
        model: A causal LM, not patched.
        products: All of its products.
        report: Called with a line where that changes the weights.
    """
    moved = total = 0.0
    linears = [linear for product in products for linear in product.linears]
    for module in (model.get_input_embeddings(), *linears):
        apart, whole = _narrow(module)
        moved, total = moved + apart, total + whole
    if moved > 0:
        report(f"rounded to {NARROW_TYPE}: weights moved by {(moved / total) ** 0.5:.2%} of their norm")


def _narrow(module: nn.Linear | nn.Embedding) -> tuple[float, float]:
    """Round the weight of a layer; gives the sum of squares of what that changes, and of the weight."""
    held = held_weight(module)
    assert isinstance(held, HeldTensor)
    if held.tensor.dtype == WEIGHTS_IN:
        return 0.0, 0.0
    if not isinstance(module, HoldingModule):
        return _round(held.tensor, held.tensor)
    rounded = torch.empty_like(held.tensor, dtype=WEIGHTS_IN)
    module.held = HeldTensor(rounded)
    return _round(held.tensor, rounded)


def _round(matrix: Tensor, rounded: Tensor) -> tuple[float, float]:
    """Write a rounded matrix [N, D] into another, which may be itself, a few rows at a time; see `_narrow`."""
    apart = total = 0.0
    size = rows_at_a_time(matrix)
    for rows, into in zip(matrix.split(size), rounded.split(size), strict=True):
        narrow, wide = rows.to(WEIGHTS_IN), rows.float()
        apart += float((wide - narrow.float()).square().sum(dtype=torch.float64))
        total += float(wide.square().sum(dtype=torch.float64))
        into.copy_(narrow)
    return apart, total
