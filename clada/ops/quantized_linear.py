"""Sparse linear op with quantized weights, derived from the one with floating-point weights."""

from collections.abc import Iterator, Mapping

from clada.ops.block_quantization import check_sizes, quantize
from clada.ops.quantized_matrices import ATTRIBUTES, dequantizing_body, dequantizing_reference
from clada.ops.record import Case, Op, Tensor
from clada.ops.sparse_linear import SPARSE_LINEAR, linear_cases

_DOC = """
The matrix w is given as codes in `bits` bits (i8[D, N * bits / 8]; 4-bit codes two a byte, in two's complement, the
earlier one in the low half) and as scales s, one for each block of block_size weights of a row: a weight is
code * scale. What follows is said of these weights.

"""
# Bits, block size and outputs for each kind of rows that the sample cases take in turn.
_FORMATS = ((4, 32, 96), (8, 32, 160), (4, 128, 256), (8, 128, 128))
_INPUTS = (
    Tensor("x", "T", ("B", "S", "D")),
    Tensor("w", "int8", ("D", "P"), "matrix"),
    Tensor("s", "float16", ("D", "G"), "scales", of="w"),
    Tensor("threshold", "float32", ("D",), "threshold"),
    Tensor("scale", "float32", ("B", "S"), "scale"),
)


def _cases() -> Iterator[Case]:
    of_outputs = {outputs: list(linear_cases(outputs)) for _, _, outputs in _FORMATS}
    for number in range(len(of_outputs[_FORMATS[0][2]])):
        bits, block_size, outputs = _FORMATS[number % len(_FORMATS)]
        case = of_outputs[outputs][number]
        codes, scales = quantize(case.inputs["w"], bits, block_size)
        attributes = {"bits": bits, "block_size": block_size}
        yield Case(f"int{bits}-block{block_size}-{case.name}", {**case.inputs, "w": codes, "s": scales}, attributes)


def _output_sizes(sizes: Mapping[str, int], attributes: Mapping[str, str | float]) -> dict[str, int]:
    return {"N": sizes["P"] * 8 // int(attributes["bits"])}


def _check_sizes(sizes: Mapping[str, int], attributes: Mapping[str, str | float]) -> None:
    bits, block_size = int(attributes["bits"]), int(attributes["block_size"])
    outputs = _output_sizes(sizes, attributes)["N"]
    check_sizes(QUANTIZED_LINEAR.name, outputs, bits, block_size, sizes["P"], sizes["G"], axis="N")


QUANTIZED_LINEAR = Op(
    name=f"Quantized{SPARSE_LINEAR.name}",
    doc=SPARSE_LINEAR.doc.replace("\n", f"\n{_DOC}", 1),
    inputs=_INPUTS,
    outputs=SPARSE_LINEAR.outputs,
    attributes=ATTRIBUTES,
    reference=dequantizing_reference(SPARSE_LINEAR, _INPUTS),
    body=dequantizing_body(SPARSE_LINEAR),
    cases=_cases,
    # Kernels may take what a row is multiplied with in 16 bits.
    tolerance={**SPARSE_LINEAR.tolerance, "float32": 2e-4},
    check_sizes=_check_sizes,
    output_sizes=_output_sizes,
)
