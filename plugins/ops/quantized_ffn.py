"""The sparse feed-forward ops with quantised weights, derived from those with weights in floating point."""

import re
from collections.abc import Callable, Iterator, Mapping

from clada.plugins.ops.block_quantization import BITS, BLOCK_SIZES, check_sizes, dequantize, quantize
from clada.plugins.ops.record import Array, Attribute, Case, Op, Tensor
from clada.plugins.ops.sparse_ffn import SPARSE_FFN, SPARSE_GATED_FFN, ffn_cases

_DOC = """
Each matrix w is given as codes in `bits` bits (i8[F, D * bits / 8]; 4-bit codes two a byte, in two's complement, the
earlier one in the low half) and as scales s, one for each block of block_size weights of a row: a weight is
code * scale. What follows is said of these weights.

"""
# Bits, block size and a width for each kind of rows that the sample cases take in turn.
_FORMATS = ((4, 32, 96), (8, 32, 160), (4, 128, 256), (8, 128, 128))


def _is_matrix(spec: Tensor) -> bool:
    return spec.name.startswith("w_")


def scales_name(matrix: str) -> str:
    """Name of the input that holds a matrix's scales: s_gate of w_gate."""
    return matrix.replace("w_", "s_")


def matrix_names(op: Op) -> list[str]:
    """Names of the inputs of an op that are weight matrices."""
    return [spec.name for spec in op.inputs if _is_matrix(spec)]


def _inputs(op: Op) -> Iterator[Tensor]:
    for spec in op.inputs:
        if _is_matrix(spec):
            yield Tensor(spec.name, "int8", ("F", "P"))
            yield Tensor(scales_name(spec.name), "float16", ("F", "N"))
        else:
            yield spec


def _reference(op: Op, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Array, ...]]:
    def reference(*arrays: Array, bits: int, block_size: int, activation: str) -> tuple[Array, ...]:
        given = dict(zip((spec.name for spec in inputs), arrays, strict=True))
        wide = (
            dequantize(given[spec.name], given[scales_name(spec.name)], bits) if _is_matrix(spec) else given[spec.name]
            for spec in op.inputs
        )
        return op.reference(*wide, activation=activation)

    return reference


def _unpacking(matrix: str, bits: int) -> str:
    """Reads {matrix}, its scales and x; writes {matrix}_wide T[F, D]."""
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


def _body(op: Op) -> Callable[[Mapping[str, str | float]], str]:
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


def _cases(op: Op) -> Iterator[Case]:
    for index, (bits, block_size, width) in enumerate(_FORMATS):

        def rounded(matrix: Array, bits: int = bits, block_size: int = block_size) -> Array:
            packed, scales = quantize(matrix, bits, block_size)
            return dequantize(packed, scales.astype(matrix.dtype), bits)

        for number, case in enumerate(ffn_cases(op is SPARSE_GATED_FFN, width, rounded)):
            # Each shape and each activation in every format over the cases, without all of them in all.
            if (number + number // 6) % len(_FORMATS) != index:
                continue
            inputs = dict(case.inputs)
            for spec in op.inputs:
                if _is_matrix(spec):
                    inputs[spec.name], inputs[scales_name(spec.name)] = quantize(inputs[spec.name], bits, block_size)
            attributes = {"bits": bits, "block_size": block_size, **case.attributes}
            yield Case(f"int{bits}-block{block_size}-{case.name}", inputs, attributes)


def _check_sizes(op: Op) -> Callable[[Mapping[str, int], Mapping[str, str | float]], None]:
    def check(sizes: Mapping[str, int], attributes: Mapping[str, str | float]) -> None:
        bits, block_size = int(attributes["bits"]), int(attributes["block_size"])
        check_sizes(op.name, sizes["D"], bits, block_size, sizes["P"], sizes["N"])

    return check


def quantized(op: Op) -> Op:
    """The variant of a feed-forward op whose matrices are quantised."""
    name, inputs = f"Quantized{op.name}", tuple(_inputs(op))
    return Op(
        name=name,
        doc=op.doc.replace("\n", f"\n{_DOC}", 1),
        inputs=inputs,
        outputs=op.outputs,
        attributes=(Attribute("bits", 4, BITS), Attribute("block_size", 32, BLOCK_SIZES), *op.attributes),
        reference=_reference(op, inputs),
        body=_body(op),
        cases=lambda: _cases(op),
        # Kernels may take x in 16 bits, with a scale for each 32 values.
        tolerance={**op.tolerance, "float32": 2e-4},
        check_sizes=_check_sizes(op),
    )


# By name of the op with weights in floating point.
QUANTIZED: dict[str, Op] = {op.name: quantized(op) for op in (SPARSE_GATED_FFN, SPARSE_FFN)}
