"""Symmetric quantization of weights to 4 or 8 bits, with one scale per block of a row: packing and dequantization.

A weight is code * scale, codes in [-8, 7] or [-128, 127]. 4-bit codes are packed as ONNX packs INT4: two a byte, in
two's complement, the earlier one in the low half.
"""

import numpy as np

from clada.errors import CladaError
from clada.ops.record import Array

BITS = (4, 8)
BLOCK_SIZES = (32, 128)

# The smallest positive float16: no scale may be zero.
_SMALLEST_SCALE = 2.0**-24
# Rows that are dequantized at a time.
_ROWS = 16
# The two codes of each byte of packed 4-bit codes.
_PAIRS = np.stack([np.arange(256) << 4, np.arange(256)], axis=-1).astype(np.int8) >> 4


def check_sizes(
    name: str, width: int, bits: int, block_size: int, packed: int, scales: int, *, axis: str = "D"
) -> None:
    """Raise CladaError where the sizes of a packed matrix do not fit.

    Args:
        name: Name of the packed matrix, for the message.
        width: Weights per row.
        bits: One of BITS.
        block_size: Weights per scale.
        packed: Bytes per row.
        scales: Scales per row.
        axis: Name of the width, for the message.
    """
    if width % block_size:
        raise CladaError(f"{name}: block_size {block_size} does not divide the width {axis}={width}")
    if packed * 8 != width * bits:
        raise CladaError(f"{name}: {packed} bytes a row do not fit {axis}={width} weights of {bits} bits")
    if scales * block_size != width:
        raise CladaError(f"{name}: {scales} scales a row do not fit {axis}={width} in blocks of {block_size}")


def check_scales(name: str, scales: Array) -> None:
    """Raise CladaError for a scale that is zero, infinite or NaN.

    Args:
        name: Name of the tensor, for the message.
        scales: f16[F, N].
    """
    bad = ~np.isfinite(scales) | (scales == 0)
    if bad.any():
        row, block = np.argwhere(bad)[0]
        found = scales[row, block]
        what = "zero" if found == 0 else "NaN" if np.isnan(found) else "infinite"
        raise CladaError(f"{name} has a scale that is {what}, in row {row}; export the model again")


def pack(codes: Array, bits: int) -> Array:
    """Pack codes i8[F, D]; returns i8[F, D * bits / 8]."""
    if bits == 8:
        return codes
    pairs = codes.view(np.uint8).reshape(len(codes), codes.shape[1] // 2, 2) & 0xF
    return (pairs[..., 0] | pairs[..., 1] << 4).view(np.int8)


def unpack(packed: Array, bits: int) -> Array:
    """Unpack codes i8[F, D] from the result of `pack`."""
    if bits == 8:
        return packed
    halves = np.stack([packed << 4, packed & ~0xF], axis=-1).astype(np.int8) >> 4
    return halves.reshape(len(packed), 2 * packed.shape[1])


def dequantize(packed: Array, scales: Array, bits: int) -> Array:
    """Dequantize packed codes with scales [F, N] to weights [F, D], in the scales' dtype."""
    width = packed.shape[1] * 8 // bits
    weights = np.empty((len(packed), width), scales.dtype)
    pairs = _PAIRS.astype(scales.dtype)
    for at in range(0, len(packed), _ROWS):  # a few at a time, which a cache holds
        rows = slice(at, at + _ROWS)
        if bits == 4:
            # Two codes are one number of twice the size: taken so, a table is twice as fast as shifts.
            both = weights[rows].view(np.dtype(f"V{2 * weights.itemsize}"))
            np.take(pairs.view(both.dtype)[:, 0], packed[rows].view(np.uint8), out=both, mode="clip")
        else:
            weights[rows] = packed[rows]
        blocks = weights[rows].reshape(*scales[rows].shape, width // max(1, scales.shape[1]))
        blocks *= scales[rows, :, None]
    return weights


def quantize(matrix: Array, bits: int, block_size: int, *, positive: bool = False) -> tuple[Array, Array]:
    """Quantize weights [F, D] to the nearest codes.

    The largest weight of a block gets the lowest code, of which there is one more than of the highest: scales may be
    negative.

    Args:
        matrix: The weights.
        bits: One of BITS.
        block_size: Weights per scale.
        positive: Leave the lowest code out, so that scales are positive: TensorRT takes no others of 8-bit codes.

    Returns:
        Packed codes i8[F, P] and scales f16[F, D / block_size].

    Raises:
        CladaError: The block size does not divide D, or a weight is too large for its scale to be a float16.
    """
    rows, width = matrix.shape
    if width % block_size:
        raise CladaError(f"block size {block_size} does not divide the width of the weights, {width}")
    blocks = matrix.reshape(rows, width // block_size, block_size)
    lowest = -(1 << (bits - 1))
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    with np.errstate(over="ignore"):
        scales = (np.abs(peak) / (-lowest - 1) if positive else peak / lowest).astype(np.float16)
    if not np.isfinite(scales).all():
        raise CladaError(f"a weight of {np.abs(matrix).max():g} cannot be quantized to {bits} bits with float16 scales")
    scales = np.where(scales == 0, np.float16(_SMALLEST_SCALE), scales)
    codes = np.clip(np.rint(blocks / scales.astype(matrix.dtype)), lowest, -lowest - 1).astype(np.int8)
    return pack(codes.reshape(rows, width), bits), scales[..., 0]
