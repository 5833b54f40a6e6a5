"""SparseLinear's CUDA kernels in the host emulation against the float64 reference, as in test_cuda_kernels.py."""

import dataclasses
import itertools

import numpy as np
import pytest

from clada.ops import QUANTIZED_LINEAR, SPARSE_LINEAR
from clada.ops.record import FLOAT_TYPES, Array, Case, Op, evaluate
from tests.native import cuda_kernels_c
from tests.native.cases import check_outputs, large_linear_case, rounded_case
from tests.native.cuda_kernels_c import ROWWISE_TOKENS
from tests.native.test_cuda_kernels import elements, same_in_all_runs, sequences
from tests.support.exhaustive import in_turn

INVALID_VALUE = 1


def op_of(case: Case) -> Op:
    return QUANTIZED_LINEAR if case.attributes else SPARSE_LINEAR


def quantization_of(case: Case) -> tuple[int, int] | None:
    return (int(case.attributes["bits"]), int(case.attributes["block_size"])) if case.attributes else None


def run(case: Case, **options) -> tuple[Array, ...]:
    return same_in_all_runs(cuda_kernels_c.sparse_linear, case.inputs, quantization=quantization_of(case), **options)


def check(case: Case, element: str = "float32", **options) -> None:
    case = rounded_case(case, element, element)
    check_outputs(op_of(case), case, run(case, element=element, **options), element)


def check_once(case: Case) -> None:
    """In one order, where the sizes take long."""
    outputs = cuda_kernels_c.sparse_linear(case.inputs, quantization=quantization_of(case))
    check_outputs(op_of(case), rounded_case(case, "float32", "float32"), outputs, "float32")


def check_launches(case: Case) -> None:
    """The launches do not depend on the values kept: a CUDA graph repeats those that it saw."""
    nothing = dataclasses.replace(case, inputs={**case.inputs, "scale": -1 - 0 * case.inputs["scale"]})
    seen = []
    for given in (case, nothing):
        cuda_kernels_c.launches()
        cuda_kernels_c.sparse_linear(given.inputs, quantization=quantization_of(case))
        seen.append(cuda_kernels_c.launches())
    assert seen[0] and seen[0] == seen[1]


def check_what_is_not_finite_shows(case: Case, value: float) -> None:
    case.inputs["x"][0, 0, 3] = value
    y, kept = run(case)
    expected = evaluate(op_of(case), rounded_case(case, "float32", "float32"))
    np.testing.assert_array_equal(kept, expected[1])
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected[0]))
    assert not np.isfinite(y[0, 0]).any()


@elements
@pytest.mark.parametrize("case", SPARSE_LINEAR.cases(), ids=lambda case: case.name)
def test_matches_reference(case, element):
    check(case, element)


# Rows that are and are not whole vectors; one tile, and more than one; products.
LARGE = [(1, 1, 70, 264), (8, 1, 70, 136), (5, 1, 70, 65), (2, 3, 17, 136), (2, 7, 300, 100)]
PLACED = [*((sizes, 0) for sizes in LARGE), (LARGE[0], 4)]


@pytest.mark.parametrize(("placed", "element"), in_turn(PLACED, FLOAT_TYPES), ids=str)
def test_sizes_past_every_block(placed, element):
    sizes, offset = placed
    check(large_linear_case(*sizes), element, offset=offset)


def test_more_inputs_than_fit_a_window():
    check(large_linear_case(1, 1, 16_500, 24))


def test_more_inputs_than_a_block_takes():
    check_once(large_linear_case(5, 1, 1100, 24))


def test_a_vocabulary_whose_tiles_are_more_than_a_card_has_places():
    """The call is still cut into several splits."""
    case = large_linear_case(1, 1, 520, 33_000)
    cuda_kernels_c.launches()
    check_once(case)
    tiles = -(-33_000 // 64)
    assert f"<<<({2 * tiles}, 1, 1), (256, 1, 1)>>>" in cuda_kernels_c.launches()[-1]


@pytest.mark.parametrize(("batch", "element"), in_turn(range(1, 9), FLOAT_TYPES))
def test_every_batch(batch, element):
    check(large_linear_case(batch, 1, 40, 100), element)


@pytest.mark.parametrize(("element", "size"), [("float32", 4), ("float16", 2)])
def test_every_misalignment(element, size):
    for offset in range(size, 17, size):
        check(large_linear_case(1, 2, 33, 64), element, offset=offset)


@elements
def test_every_small_size(element):
    for outputs in range(1, 20):
        check(large_linear_case(1, 1, 17, outputs), element)


def test_more_tokens_than_fit_a_chunk():
    check_once(large_linear_case(3, 343, 16, 37))


@pytest.mark.fault(
    "native", "a batch, text or matrix of no size in SparseLinear on a GPU", now="empty outputs, or zeros"
)
def test_every_size_may_be_0():
    for shape in itertools.product((0, 2), (0, 1, 12), (0, 5), (0, 19)):
        if 0 in shape:
            check(large_linear_case(*shape))


@pytest.mark.fault(
    "native", "sizes of SparseLinear that are negative or beyond what is counted, on a GPU", now="refused"
)
@pytest.mark.parametrize("name", ["batch", "sequence", "width", "outputs"])
@pytest.mark.parametrize("size", [-1, 2**31, 2**62])
def test_sizes_that_cannot_be_are_refused(name, size):
    inputs = large_linear_case(1, 1, 8, 4).inputs
    assert cuda_kernels_c.sparse_linear_error(inputs, said={name: size}) == INVALID_VALUE


def test_what_cannot_be_computed_is_an_invalid_value():
    few, many = (large_linear_case(1, tokens, 8, 4).inputs for tokens in (1, ROWWISE_TOKENS + 1))
    assert cuda_kernels_c.sparse_linear_error(few) == 0
    assert cuda_kernels_c.sparse_linear_error(many) == INVALID_VALUE
    assert cuda_kernels_c.sparse_linear_error(few, "float16") == INVALID_VALUE


@sequences
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_kept_and_shows(value, sequence):
    check_what_is_not_finite_shows(large_linear_case(1, sequence, 40, 100), value)


@sequences
def test_infinite_thresholds_keep_nothing_but_what_is_dense(sequence):
    """0 times infinity is no number, and nothing is below it."""
    case = large_linear_case(1, sequence, 40, 100)
    case.inputs["threshold"][:] = np.inf
    case.inputs["scale"][0, :2] = 1, 0
    check(case)
    assert run(case)[1][0, :2].tolist() == [0, 40]


def test_rows_of_inputs_that_no_token_keeps_are_not_read():
    """Rows of NaN there change nothing."""
    case = large_linear_case(1, 2, 300, 70)
    case.inputs["scale"][:] = 1
    case.inputs["threshold"][:] = 0.7
    plain = run(case)
    dropped = (np.abs(case.inputs["x"][0]) < case.inputs["threshold"]).all(axis=0)
    assert 0.1 < dropped.mean() < 0.9
    case.inputs["w"][dropped] = np.nan
    for a, b in zip(plain, run(case), strict=True):
        np.testing.assert_array_equal(a, b)


@sequences
def test_what_is_launched_depends_on_sizes_alone(sequence):
    check_launches(large_linear_case(2, sequence, 40, 100))


@pytest.mark.fault("native", "random sizes and types of SparseLinear on a GPU", now="the reference's outputs")
def test_any_sizes(record_property):
    rng = np.random.default_rng(0)
    cases = 20
    for _ in range(cases):
        batch, sequence, width, outputs = (int(rng.integers(high)) for high in (5, 12, 300, 150))
        check(large_linear_case(batch, sequence, width, outputs), ("float32", "float16", "bfloat16")[rng.integers(3)])
    record_property("cases", cases)
