"""Precisions of a contender's weights, by the word that ends its name."""

from dataclasses import dataclass

import numpy as np

from clada.ops.block_quantization import dequantize, quantize
from clada.ops.record import Array


@dataclass(frozen=True)
class Blocks:
    """Block format of quantized weights, with one scale per block.

    Args:
        bits: Bits per weight.
        block_size: Weights per scale.
    """

    bits: int
    block_size: int


FLOATS = ("float32", "bfloat16")
BLOCKS = {"int4": Blocks(4, 32), "int4-block128": Blocks(4, 128), "int8": Blocks(8, 32)}
PRECISIONS = (*FLOATS, *BLOCKS)
# A whole model's contenders: each takes the memory of one more model.
OF_MODELS = (*FLOATS, "int4")


_ROWS = 2048


def rounded(matrix: Array, blocks: Blocks) -> tuple[Array, Array]:
    """Quantize a matrix [F, D] to packed codes i8[F, P] and scales f16[F, N]."""
    parts = (np.ascontiguousarray(matrix[start : start + _ROWS], np.float32) for start in range(0, len(matrix), _ROWS))
    codes, scales = zip(*(quantize(part, blocks.bits, blocks.block_size) for part in parts), strict=True)
    return np.concatenate(codes), np.concatenate(scales)


def restored(matrix: Array, blocks: Blocks) -> Array:
    """Matrix [F, D] after quantization and dequantization, f32."""
    codes, scales = rounded(matrix, blocks)
    return dequantize(codes, scales.astype(np.float32), blocks.bits)
