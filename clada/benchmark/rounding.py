"""Weights rounded to blocks of codes, a part at a time: a vocabulary's matrix takes a gigabyte itself."""

import numpy as np

from clada.benchmark.precisions import Blocks
from clada.ops.block_quantization import dequantize, quantize
from clada.ops.record import Array

_ROWS = 2048


def rounded(matrix: Array, blocks: Blocks) -> tuple[Array, Array]:
    """Packed codes i8[F, P] and scales f16[F, N] of a matrix [F, D]."""
    parts = (np.ascontiguousarray(matrix[start : start + _ROWS], np.float32) for start in range(0, len(matrix), _ROWS))
    codes, scales = zip(*(quantize(part, blocks.bits, blocks.block_size) for part in parts), strict=True)
    return np.concatenate(codes), np.concatenate(scales)


def restored(matrix: Array, blocks: Blocks) -> Array:
    """What a matrix [F, D] is after rounding, f32."""
    codes, scales = rounded(matrix, blocks)
    return dequantize(codes, scales.astype(np.float32), blocks.bits)
