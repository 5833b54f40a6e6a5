"""The kernels of the quantized SparseLinear against the float64 reference: cases, sizes, formats, instruction sets."""

import dataclasses

import numpy as np
import pytest

from clada.ops import QUANTIZED_LINEAR
from clada.ops.record import Array, Case, evaluate
from tests.native import kernels_c
from tests.native.cases import check_outputs, large_linear_case, rounded_case
from tests.native.test_quantized_kernels import INSTRUCTIONS, quantization

# B, S, D, N: row by row with whole and broken chunks of inputs, stripes that are whole and broken, one strip of them
# and several; 28 tokens and more go as products of matrices, past every block.
LARGE = [
    (1, 1, 300, 1024),
    (1, 1, 7, 20_480),
    (3, 2, 129, 640),
    (2, 7, 500, 896),
    (2, 13, 100, 128),
    (2, 270, 260, 384),
    (1, 33, 64, 128),
]
sizes = pytest.mark.parametrize("sizes", LARGE, ids=str)
# Instruction sets, and those that are faster where factors may be rounded to bytes, with that.
BYTES = " bytes"
instructions = pytest.mark.parametrize(
    "instructions", [*INSTRUCTIONS, *({"avx2" + BYTES} if "avx2" in INSTRUCTIONS else ())]
)
# What rounding a factor to the 254th part of the largest of 16 may cost, relative to the largest result.
BYTE_TOLERANCE = 2e-2
ROUNDED_TO_BYTES = dataclasses.replace(
    QUANTIZED_LINEAR, tolerance={name: max(value, BYTE_TOLERANCE) for name, value in QUANTIZED_LINEAR.tolerance.items()}
)


def call(case: Case, instructions: str, **options) -> tuple[Array, Array]:
    bits, block_size = (int(case.attributes[name]) for name in ("bits", "block_size"))
    return kernels_c.sparse_linear(
        case.inputs,
        quantization=(bits, block_size),
        instructions=instructions.removesuffix(BYTES),
        byte_factors=instructions.endswith(BYTES),
        **options,
    )


def check(case: Case, *, instructions: str, element: str = "float32", **options) -> None:
    op = ROUNDED_TO_BYTES if instructions.endswith(BYTES) and case.attributes["bits"] == 4 else QUANTIZED_LINEAR
    case = rounded_case(case, element, element)
    check_outputs(op, case, call(case, instructions, element=element, **options), element)


@instructions
@pytest.mark.parametrize("element", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", list(QUANTIZED_LINEAR.cases()), ids=lambda case: case.name)
def test_matches_reference(case, element, instructions):
    check(case, instructions=instructions, element=element, offset=2)


@instructions
@quantization
@pytest.mark.parametrize("threads", [1, 2])
@sizes
def test_sizes_past_every_block(sizes, threads, quantization, instructions):
    check(large_linear_case(*sizes, quantization=quantization), instructions=instructions, threads=threads, offset=4)


@instructions
@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("outputs", range(32, 1056, 32))
def test_every_number_of_groups(outputs, tokens, instructions):
    """Each number of lanes that a last stripe can have."""
    check(large_linear_case(1, tokens, 20, outputs, quantization=(4, 32)), instructions=instructions)


@instructions
@quantization
@pytest.mark.parametrize("kept", range(18))
def test_every_number_of_kept_inputs(kept, quantization, instructions):
    """Whole and broken groups of rows, whose last one has nothing to prefetch."""
    case = large_linear_case(1, 1, 40, 256, quantization=quantization)
    x = case.inputs["x"].copy()
    x[0, 0, np.random.default_rng(kept).permutation(40)[kept:]] = 0
    inputs = {**case.inputs, "x": x, "scale": np.zeros((1, 1), np.float32)}
    assert call(Case("kept", inputs, case.attributes), instructions=instructions)[1] == kept
    check(Case("kept", inputs, case.attributes), instructions=instructions)


@instructions
@quantization
@sizes
def test_bits_are_the_same_for_any_number_of_threads(sizes, quantization, instructions):
    case = large_linear_case(*sizes, quantization=quantization)
    first, *others = [call(case, instructions=instructions, threads=threads) for threads in (1, 2, 3, 1)]
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@instructions
@quantization
def test_bits_of_a_text_are_the_same_alone_and_in_a_batch(quantization, instructions):
    case = large_linear_case(3, 2, 129, 640, quantization=quantization)
    together = call(case, instructions=instructions)
    for row in range(3):
        alone = {name: a[row : row + 1] if name in ("x", "scale") else a for name, a in case.inputs.items()}
        for a, b in zip(
            call(dataclasses.replace(case, inputs=alone), instructions=instructions), together, strict=True
        ):
            np.testing.assert_array_equal(a[0], b[row])


@instructions
@quantization
@pytest.mark.parametrize("sequence", [1, 40])
@pytest.mark.parametrize("empty", ["batch", "sequence", "width", "outputs"])
def test_sizes_of_zero(empty, sequence, quantization, instructions):
    """Sums of nothing are 0, and every output is written."""
    given = {"batch": 3, "sequence": sequence, "width": 3, "outputs": 256, empty: 0}
    check(large_linear_case(*given.values(), quantization=quantization), instructions=instructions)


@instructions
@quantization
@pytest.mark.parametrize("sequence", [1, 13, 30])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(value, sequence, quantization, instructions):
    case = large_linear_case(1, sequence, 40, 128, quantization=quantization)
    plain = call(case, instructions=instructions)
    x = case.inputs["x"].copy()
    x[0, 0, 3] = value
    case = dataclasses.replace(case, inputs={**case.inputs, "x": x})
    y, kept = call(case, instructions=instructions)
    np.testing.assert_array_equal(kept, evaluate(QUANTIZED_LINEAR, case)[1])
    assert not np.isfinite(y[0, 0]).any()
    np.testing.assert_array_equal(y[0, 1:], plain[0][0, 1:])


@instructions
@quantization
def test_rows_of_dropped_inputs_are_not_read(quantization, instructions):
    case = large_linear_case(1, 1, 300, 1024, quantization=quantization)
    plain = call(case, instructions=instructions)
    dropped = np.abs(case.inputs["x"][0, 0]) < case.inputs["threshold"]
    assert 0.2 < dropped.mean() < 0.8
    case.inputs["s"][dropped] = np.nan
    for a, b in zip(plain, call(case, instructions=instructions), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bytes_round_as_far_as_was_measured():
    """That the other way runs, and how far it is: a hundredth, where 16 bits are at 2e-4."""
    if "avx2" not in INSTRUCTIONS:
        pytest.skip("this processor has no AVX2")
    case = large_linear_case(1, 1, 896, 1152, quantization=(4, 32))
    expected = evaluate(QUANTIZED_LINEAR, case)[0]
    apart = [
        float(np.linalg.norm(call(case, way)[0] - expected) / np.linalg.norm(expected))
        for way in ("avx2", "avx2" + BYTES)
    ]
    assert apart[0] < 1e-4
    assert 1e-3 < apart[1] < 1e-2


@instructions
@quantization
def test_extreme_codes_are_exact(quantization, instructions):
    """The lowest and highest code times the largest x of either sign: nothing saturates."""
    bits, block_size = quantization
    rng = np.random.default_rng(0)
    extremes = np.int8([-128, 127, -127, 0]) if bits == 8 else np.int8([-120, 119, 7, -1])
    inputs = {
        "x": rng.choice(np.float32([-1, 1]), (1, 1, 64)),
        "w": rng.choice(extremes, (64, 256 * bits // 8)),
        "s": np.full((64, 256 // block_size), 2.0**-8, np.float16),
        "threshold": np.zeros(64, np.float32),
        "scale": np.zeros((1, 1), np.float32),
    }
    check(Case("extremes", inputs, {"bits": bits, "block_size": block_size}), instructions=instructions)


@instructions
@quantization
def test_inputs_of_very_different_sizes(quantization, instructions):
    """Each factor of a row is rounded relative to the largest one in the same sum."""
    case = large_linear_case(1, 1, 500, 512, quantization=quantization)
    x = case.inputs["x"] * 10.0 ** np.random.default_rng(0).integers(-6, 1, 500)
    inputs = {**case.inputs, "x": x, "scale": np.zeros((1, 1), np.float32)}
    check(dataclasses.replace(case, inputs=inputs), instructions=instructions)
