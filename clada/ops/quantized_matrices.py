"""Common parts of the quantized ops, in which each weight matrix w is replaced by codes and scales s."""

import re
from collections.abc import Callable, Mapping

from clada.ops.block_quantization import BITS, BLOCK_SIZES, dequantize
from clada.ops.record import Array, Attribute, Op, Tensor, names_of

ATTRIBUTES = (Attribute("bits", 4, BITS), Attribute("block_size", 32, BLOCK_SIZES))


def scales_name(matrix: str) -> str:
    """Name of the input that holds a matrix's scales: s_gate of w_gate."""
    return "s" + matrix.removeprefix("w")


def matrix_names(op: Op) -> list[str]:
    """Names of the inputs of an op that are weight matrices."""
    return names_of(op, "matrix")


def dequantizing_reference(op: Op, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Array, ...]]:
    """Build the reference of an op's quantized variant.

    Args:
        op: The op with weights in floating point.
        inputs: Inputs of the variant.
    """

    def reference(*arrays: Array, bits: int, block_size: int, **attributes: str | float) -> tuple[Array, ...]:
        given = dict(zip((spec.name for spec in inputs), arrays, strict=True))
        wide = (
            dequantize(given[spec.name], given[scales_name(spec.name)], bits)
            if spec.role == "matrix"
            else given[spec.name]
            for spec in op.inputs
        )
        return op.reference(*wide, **attributes)

    return reference


def _unpacking(matrix: str, bits: int) -> str:
    """Function body that reads {matrix}, its scales and x, and writes {matrix}_wide, of the type of x."""
    codes = f"""
    {matrix}_bytes = Cast <to = 6> ({matrix}_blocks)
    {matrix}_codes = Gather <axis = 0> (codes_of_byte, {matrix}_bytes)
    """
    return f"""
    {matrix}_blocks = Reshape ({matrix}, shape_of_blocks)
    {codes if bits == 4 else f"{matrix}_codes = Cast <to = 1> ({matrix}_blocks)"}
    {matrix}_scales = Cast <to = 1> ({scales_name(matrix)})
    {matrix}_scales_of_blocks = Unsqueeze ({matrix}_scales, axes_of_block)
    {matrix}_scaled = Mul ({matrix}_codes, {matrix}_scales_of_blocks)
    {matrix}_rows = Reshape ({matrix}_scaled, shape_of_rows)
    {matrix}_wide = CastLike ({matrix}_rows, x)
    """


# f32[256, 2], of which a byte as an index, negative where its sign is, gives the two codes: what is made of constants
# is kept by a runtime until it has made them all, and so a matrix goes through few steps.
_CODES_OF_BYTE = """
    bytes_begin = Constant <value_float = 0.0> ()
    bytes_end = Constant <value_float = 256.0> ()
    bytes_step = Constant <value_float = 1.0> ()
    eight = Constant <value_float = 8.0> ()
    sixteen = Constant <value_float = 16.0> ()
    pair_axis = Constant <value_ints = [1]> ()
    byte = Range (bytes_begin, bytes_end, bytes_step)
    byte_sixteenth = Div (byte, sixteen)
    high = Floor (byte_sixteenth)
    high_in_byte = Mul (high, sixteen)
    low = Sub (byte, high_in_byte)
    low_column = Unsqueeze (low, pair_axis)
    high_column = Unsqueeze (high, pair_axis)
    halves = Concat <axis = 1> (low_column, high_column)
    halves_eighth = Div (halves, eight)
    halves_sign = Floor (halves_eighth)
    halves_wrap = Mul (halves_sign, sixteen)
    codes_of_byte = Sub (halves, halves_wrap)
"""


def dequantizing_body(op: Op) -> Callable[[Mapping[str, str | float]], str]:
    """Function body of an op's quantized variant: the op's own, after dequantizing the matrices."""
    matrices = matrix_names(op)

    def body(attributes: Mapping[str, str | float]) -> str:
        bits, block_size = int(attributes["bits"]), int(attributes["block_size"])
        per_byte = 8 // bits
        unpacking = "".join(_unpacking(matrix, bits) for matrix in matrices)
        wide = re.sub(rf"\b({'|'.join(matrices)})\b", r"\1_wide", op.body(attributes))
        return f"""
    {_CODES_OF_BYTE if bits == 4 else ""}
    axes_of_block = Constant <value_ints = {[2, 3][:per_byte]}> ()
    shape_of_blocks = Constant <value_ints = [0, -1, {block_size // per_byte}]> ()
    shape_of_rows = Constant <value_ints = [0, -1]> ()
    {unpacking}
    {wide}
    """

    return body
