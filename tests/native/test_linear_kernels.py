"""SparseLinear's kernels against the float64 reference: cases, sizes past every block, instruction sets, types."""

import dataclasses

import numpy as np
import pytest

from clada.ops import SPARSE_LINEAR
from clada.ops.record import Case, evaluate
from tests.native import kernels_c
from tests.native.cases import check_outputs, large_linear_case, rounded_case
from tests.native.test_kernels import instructions, weight_element

CASES = pytest.mark.parametrize("case", list(SPARSE_LINEAR.cases()), ids=lambda case: case.name)
# B, S, D, N: row by row with whole and broken chunks of inputs and strips of columns; products past every block.
LARGE = [(1, 1, 300, 1000), (1, 1, 7, 40_000), (3, 2, 129, 515), (2, 7, 500, 531), (2, 270, 260, 300), (1, 33, 64, 48)]
sizes = pytest.mark.parametrize("sizes", LARGE, ids=str)


def check(case: Case, *, element: str = "float32", weight_element: str = "float32", **options) -> None:
    case = rounded_case(case, element, weight_element)
    outputs = kernels_c.sparse_linear(case.inputs, element=element, weight_element=weight_element, **options)
    check_outputs(SPARSE_LINEAR, case, outputs, element)


@instructions
@weight_element
@CASES
def test_matches_reference(case, weight_element, instructions):
    check(case, instructions=instructions, weight_element=weight_element)


@instructions
@pytest.mark.parametrize("element", ["float16", "bfloat16"])
@CASES
def test_matches_reference_in_half_precision(case, element, instructions):
    check(case, instructions=instructions, element=element, weight_element=element, offset=2)


@instructions
@weight_element
@sizes
def test_sizes_past_every_block(sizes, weight_element, instructions):
    check(large_linear_case(*sizes), instructions=instructions, weight_element=weight_element, threads=2, offset=4)


@instructions
@weight_element
@sizes
def test_bits_are_the_same_for_any_number_of_threads(sizes, weight_element, instructions):
    case = large_linear_case(*sizes)
    first, *others = [
        kernels_c.sparse_linear(case.inputs, instructions=instructions, threads=threads, weight_element=weight_element)
        for threads in (1, 2, 3, 1)
    ]
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@instructions
def test_bits_of_a_text_are_the_same_alone_and_in_a_batch(instructions):
    case = large_linear_case(3, 2, 129, 515)
    together = kernels_c.sparse_linear(case.inputs, instructions=instructions)
    for row in range(3):
        alone = {name: a[row : row + 1] if name in ("x", "scale") else a for name, a in case.inputs.items()}
        for a, b in zip(kernels_c.sparse_linear(alone, instructions=instructions), together, strict=True):
            np.testing.assert_array_equal(a[0], b[row])


@instructions
@pytest.mark.parametrize("sequence", [1, 20])
@pytest.mark.parametrize("empty", ["batch", "width", "outputs"])
def test_sizes_of_zero(empty, sequence, instructions):
    """Sums of nothing are 0, and every output is written."""
    batch, width, outputs = (0 if empty == name else 3 for name in ("batch", "width", "outputs"))
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((batch, sequence, width)),
        "w": rng.standard_normal((width, outputs)),
        "threshold": np.zeros(width, np.float32),
        "scale": np.ones((batch, sequence), np.float32),
    }
    check(Case("empty", inputs, {}), instructions=instructions)


@instructions
@pytest.mark.parametrize("sequence", [1, 20])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(value, sequence, instructions):
    case = large_linear_case(1, sequence, 40, 100)
    x = case.inputs["x"].copy()
    x[0, 0, 3] = value
    case = dataclasses.replace(case, inputs={**case.inputs, "x": x})
    y, kept = kernels_c.sparse_linear(case.inputs, instructions=instructions)
    expected = evaluate(SPARSE_LINEAR, case)
    np.testing.assert_array_equal(kept, expected[1])
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected[0]))
    assert not np.isfinite(y[0, 0]).any()


@instructions
def test_rows_of_dropped_inputs_are_not_read(instructions):
    case = large_linear_case(1, 1, 300, 1000)
    plain = kernels_c.sparse_linear(case.inputs, instructions=instructions)
    dropped = np.abs(case.inputs["x"][0, 0]) < case.inputs["threshold"]
    assert 0.2 < dropped.mean() < 0.8
    case.inputs["w"][dropped] = np.nan
    poisoned = kernels_c.sparse_linear(case.inputs, instructions=instructions)
    for a, b in zip(plain, poisoned, strict=True):
        np.testing.assert_array_equal(a, b)
