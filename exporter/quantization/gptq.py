"""Quantization in which later weights compensate the rounding of earlier ones, after GPTQ (arXiv 2210.17323).

Weights of one input after another are rounded; what that changes in the outputs, on calibration text, is taken back as
far as it can be by those of the inputs that are still to come. Inputs go in the order of their energy, and scales are
those of the weights before any was moved, so that a block's weights need not be rounded together.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clada.errors import CladaError
from clada.ops.block_quantization import dequantize, pack, quantize
from clada.ops.record import Array

# Added to the second moments, as a share of their mean: text that is shorter than the inputs are wide leaves some free.
_DAMPING = 0.01
# Inputs whose corrections reach the later ones together.
_BATCH = 128
# Inputs of those whose corrections reach one another one by one: what of the weights is then in a cache.
_FEW = 16

# Of an input's index and its weights f32[N]: what those are rounded to.
_Round = Callable[[int, Tensor], Tensor]


def quantize_rows(matrix: npt.NDArray[np.float32], bits: int, block_size: int) -> tuple[Array, Array]:
    """Quantize f32[F, D] to the nearest; 8-bit codes can omit the lowest, so that scales are positive."""
    return quantize(matrix, bits, block_size, positive=bits == 8)


def _factor(moments: Tensor) -> Tensor:
    """Upper factor U f32[K, K] of the inverse of damped second moments, which is U^T U.

    With both axes turned around, the moments' lower Cholesky factor is R of R R^T, and U is the inverse of R.
    """
    damping = _DAMPING * moments.diagonal().mean().clamp_min(1e-12)
    turned = (moments + damping * torch.eye(len(moments))).flip(0, 1)
    lower, failed = torch.linalg.cholesky_ex(turned)
    if failed:  # by rounding, if at all: the sum of squares is not negative
        lower, failed = torch.linalg.cholesky_ex(turned.double())
    if failed or not bool(torch.isfinite(lower).all()):
        raise CladaError(
            "the inputs of a matrix on the calibration text are not finite, so gptq cannot be used: use rtn"
        )
    upper = lower.flip(0, 1)
    return torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True).float()


def _compensated(weights: Tensor, moments: Tensor, rounded: _Round) -> None:
    """Round weights [K, N] input by input, given the inputs' second moments f32[K, K]."""
    order = moments.diagonal().argsort(descending=True)
    rows = weights[order].float()
    factor = _factor(moments[order][:, order])
    for start in range(0, len(order), _BATCH):
        end = min(start + _BATCH, len(order))
        errors = torch.empty(end - start, rows.shape[1])
        for first in range(start, end, _FEW):
            last = min(first + _FEW, end)
            for k in range(first, last):
                errors[k - start] = (rows[k] - rounded(int(order[k]), rows[k])) / factor[k, k]
                rows[k + 1 : last].addr_(factor[k, k + 1 : last], errors[k - start], alpha=-1)
            rows[last:end].addmm_(factor[first:last, last:end].T, errors[first - start : last - start], alpha=-1)
        rows[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)


def round_inward(matrix: Tensor, moments: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix whose blocks lie along its inputs.

    Args:
        matrix: f32[N, K], a row an output.
        moments: f32[K, K], sums of products of inputs over calibration tokens.
        bits: Bits per code.
        block_size: Weights per scale.

    Returns:
        Packed codes i8[N, P] and scales f16[N, K / block_size].
    """
    scales = torch.from_numpy(quantize_rows(matrix.numpy(), bits, block_size)[1])
    wide, lowest = scales.float(), -(1 << (bits - 1))
    codes = torch.empty(matrix.shape, dtype=torch.int8)

    def rounded(k: int, column: Tensor) -> Tensor:
        scale = wide[:, k // block_size]
        code = (column / scale).round().clamp(lowest, -lowest - 1)
        codes[:, k] = code.to(torch.int8)
        return code * scale

    _compensated(matrix.t(), moments, rounded)
    return torch.from_numpy(pack(codes.numpy(), bits)), scales


def round_outward(matrix: Tensor, moments: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix whose rows are its inputs, each with blocks and scales of its own.

    Args:
        matrix: f32[F, D], what each neuron writes.
        moments: f32[F, F], sums of products of neurons over calibration tokens.
        bits: Bits per code.
        block_size: Weights per scale.

    Returns:
        Packed codes i8[F, P] and scales f16[F, D / block_size].
    """
    codes = torch.empty(len(matrix), matrix.shape[1] * bits // 8, dtype=torch.int8)
    scales = torch.empty(len(matrix), matrix.shape[1] // block_size, dtype=torch.float16)

    def rounded(k: int, column: Tensor) -> Tensor:
        packed, scale = quantize_rows(column.numpy()[None], bits, block_size)
        codes[k], scales[k] = torch.from_numpy(packed[0]), torch.from_numpy(scale[0])
        return torch.from_numpy(dequantize(packed, scale.astype(np.float32), bits)[0])

    _compensated(matrix, moments, rounded)
    return codes, scales
