"""Sparse feed-forward ops with quantized weights, derived from those with floating-point weights."""

from collections.abc import Callable, Iterator, Mapping

from clada.ops.block_quantization import check_sizes, dequantize, quantize
from clada.ops.quantized_matrices import (
    ATTRIBUTES,
    dequantizing_body,
    dequantizing_reference,
    matrix_names,
    scales_name,
)
from clada.ops.record import Array, Case, Op, Tensor
from clada.ops.sparse_ffn import SPARSE_FFN, SPARSE_GATED_FFN, ffn_cases

_DOC = """
Each matrix w is given as codes in `bits` bits (i8[F, D * bits / 8]; 4-bit codes two a byte, in two's complement, the
earlier one in the low half) and as scales s, one for each block of block_size weights of a row: a weight is
code * scale. What follows is said of these weights.

"""
# Bits, block size and a width for each kind of rows that the sample cases take in turn.
_FORMATS = ((4, 32, 96), (8, 32, 160), (4, 128, 256), (8, 128, 128))


def _inputs(op: Op) -> Iterator[Tensor]:
    for spec in op.inputs:
        if spec.role == "matrix":
            yield Tensor(spec.name, "int8", ("F", "P"), "matrix")
            yield Tensor(scales_name(spec.name), "float16", ("F", "N"), "scales", of=spec.name)
        else:
            yield spec


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
            for name in matrix_names(op):
                inputs[name], inputs[scales_name(name)] = quantize(inputs[name], bits, block_size)
            attributes = {"bits": bits, "block_size": block_size, **case.attributes}
            yield Case(f"int{bits}-block{block_size}-{case.name}", inputs, attributes)


def _check_sizes(op: Op) -> Callable[[Mapping[str, int], Mapping[str, str | float]], None]:
    def check(sizes: Mapping[str, int], attributes: Mapping[str, str | float]) -> None:
        bits, block_size = int(attributes["bits"]), int(attributes["block_size"])
        check_sizes(op.name, sizes["D"], bits, block_size, sizes["P"], sizes["N"])

    return check


def quantized(op: Op) -> Op:
    """Derive the variant of a feed-forward op whose matrices are quantized."""
    name, inputs = f"Quantized{op.name}", tuple(_inputs(op))
    return Op(
        name=name,
        doc=op.doc.replace("\n", f"\n{_DOC}", 1),
        inputs=inputs,
        outputs=op.outputs,
        attributes=(*ATTRIBUTES, *op.attributes),
        reference=dequantizing_reference(op, inputs),
        body=dequantizing_body(op),
        cases=lambda: _cases(op),
        # Kernels may take x in 16 bits, with a scale for each 32 values.
        tolerance={**op.tolerance, "float32": 2e-4},
        check_sizes=_check_sizes(op),
    )


# By name of the op with weights in floating point.
QUANTIZED_FFN: dict[str, Op] = {op.name: quantized(op) for op in (SPARSE_GATED_FFN, SPARSE_FFN)}
