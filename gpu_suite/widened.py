"""Quantised weights as the weights in floating point that they stand for."""

from collections.abc import Mapping

import torch

from clada.ops import OPS, QUANTIZED
from clada.ops.quantized_matrices import is_matrix, scales_name
from clada.ops.record import Op
from clada.ops.torch import dequantized

# By name of the quantised op, the op whose variant it is.
_OF_FLOATS = {quantized.name: OPS[name] for name, quantized in QUANTIZED.items()}


def float_op(op: Op) -> Op:
    """The op with weights in floating point that an op computes."""
    return _OF_FLOATS.get(op.name, op)


def widened(
    op: Op, tensors: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The float op's tensors of those of an op: matrices rounded to a type, all others as they are.

    Args:
        op: A quantised op, or another, of which everything stays as it is.
        tensors: Some or all of its inputs, by name; each matrix with its scales.
        attributes: Of the op.
        dtype: T.
    """
    if op.name not in _OF_FLOATS:
        return dict(tensors)
    wide = {}
    for spec in _OF_FLOATS[op.name].inputs:
        if spec.name not in tensors:
            continue
        tensor = tensors[spec.name]
        if is_matrix(spec.name):
            tensor = dequantized(tensor, tensors[scales_name(spec.name)], int(attributes["bits"])).to(dtype)
        wide[spec.name] = tensor
    return wide
