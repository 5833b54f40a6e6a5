"""The kernels for quantized weights against the float64 reference: every case, instruction set and shape of rows."""

import dataclasses

import numpy as np
import pytest

from clada.ops import QUANTIZED, SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.record import Case, Op
from tests.native import kernels_c
from tests.native.cases import QUANTIZED_FFN_CASES, check_outputs, large_case, rounded_case
from tests.native.test_kernels import ALL_INSTRUCTIONS
from tests.support.exhaustive import few

INSTRUCTIONS = [name for name in ALL_INSTRUCTIONS if kernels_c.available(name)]
instructions = pytest.mark.parametrize("instructions", INSTRUCTIONS)
FORMATS = [(4, 32), (4, 128), (8, 32), (8, 128)]
quantization = pytest.mark.parametrize("quantization", FORMATS, ids=lambda pair: f"int{pair[0]}-block{pair[1]}")
FFN_OPS = pytest.mark.parametrize("op", [SPARSE_GATED_FFN, SPARSE_FFN], ids=lambda op: op.name)


def check(op: Op, case: Case, *, element: str = "float32", **options) -> None:
    case = rounded_case(case, element, element)
    outputs = kernels_c.sparse_ffn(op, case.inputs, case.attributes, element=element, **options)
    check_outputs(op, case, outputs, element)


@instructions
@pytest.mark.parametrize("element", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("op", "case"), QUANTIZED_FFN_CASES)
def test_matches_reference(op, case, element, instructions):
    check(op, case, instructions=instructions, element=element, offset=2)


# Widths that fill no stripe, several, and one and a part; 28 tokens and more go as products of matrices.
LARGE = [(1, 1, 128, 1000), (1, 1, 896, 700), (3, 2, 1152, 215), (1, 1, 640, 5000), (1, 33, 640, 48)]


@instructions
@quantization
@pytest.mark.parametrize("threads", few([1, 2], [2]))
@pytest.mark.parametrize("sizes", LARGE, ids=str)
@FFN_OPS
def test_sizes_past_every_block(op, sizes, threads, quantization, instructions):
    case = large_case(op, *sizes, quantization=quantization)
    check(QUANTIZED[op.name], case, instructions=instructions, threads=threads, offset=4)


@instructions
@pytest.mark.parametrize("width", range(32, 1056, 32))
def test_every_number_of_groups(width, instructions):
    """Each number of lanes that a last stripe can have."""
    case = large_case(SPARSE_GATED_FFN, 1, 1, width, 40, quantization=(4, 32))
    check(QUANTIZED[SPARSE_GATED_FFN.name], case, instructions=instructions)


@instructions
@quantization
def test_the_number_of_threads_changes_no_bit(quantization, instructions):
    op = QUANTIZED[SPARSE_GATED_FFN.name]
    case = large_case(SPARSE_GATED_FFN, 1, 3, 384, 2000, quantization=quantization)
    one, two = (
        kernels_c.sparse_ffn(op, case.inputs, case.attributes, instructions=instructions, threads=threads)
        for threads in (1, 2)
    )
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)


@instructions
@quantization
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sequence", [1, 13, 30])
def test_what_is_not_finite_shows(sequence, bad, quantization, instructions):
    op = QUANTIZED[SPARSE_GATED_FFN.name]
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 256, 100, quantization=quantization)
    plain = kernels_c.sparse_ffn(op, case.inputs, case.attributes, instructions=instructions)
    x = case.inputs["x"].copy()
    x[0, 0, 200] = bad
    poisoned = kernels_c.sparse_ffn(op, {**case.inputs, "x": x}, case.attributes, instructions=instructions)
    assert not np.isfinite(poisoned[0][0, 0]).any()
    for token in range(1, sequence):
        np.testing.assert_array_equal(poisoned[0][0, token], plain[0][0, token])


@instructions
@quantization
def test_extreme_codes_are_exact(quantization, instructions):
    """The lowest and highest code against the largest x of either sign: nothing saturates."""
    op, (bits, block_size) = QUANTIZED[SPARSE_FFN.name], quantization
    case = large_case(SPARSE_FFN, 1, 1, 256, 64, quantization=quantization)
    rng = np.random.default_rng(0)
    extremes = rng.choice(
        np.int8([-128, 127, -127, 0]) if bits == 8 else np.int8([-120, 119, 7, -1]), (64, 256 * bits // 8)
    )
    x = rng.choice(np.float32([-1, 1]), (1, 1, 256))
    inputs = {
        **case.inputs,
        "x": x,
        **dict.fromkeys(("w_in", "w_out"), extremes),
        **{name: np.full((64, 256 // block_size), 2.0**-8, np.float16) for name in ("s_in", "s_out")},
        "threshold": np.zeros(64, np.float32),
        "scale": np.zeros((1, 1), np.float32),
    }
    check(op, dataclasses.replace(case, inputs=inputs), instructions=instructions)
