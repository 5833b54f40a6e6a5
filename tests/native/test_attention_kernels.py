"""CachedAttention's kernels against the float64 reference: cases, instruction sets, types, in place and not."""

import dataclasses

import numpy as np
import pytest

from clada.ops import CACHED_ATTENTION
from clada.ops.record import Case, evaluate
from tests.native.calls import rounded
from tests.native.cpu_ops_c import cached_attention
from tests.native.test_kernels import instructions

CASES = pytest.mark.parametrize("case", list(CACHED_ATTENTION.cases()), ids=lambda case: case.name)


def check(case: Case, element: str = "float32", **options) -> None:
    of_type = {spec.name for spec in CACHED_ATTENTION.inputs if spec.dtype == "T"}
    inputs = {name: rounded(a, element) if name in of_type else a for name, a in case.inputs.items()}
    case = dataclasses.replace(case, inputs=inputs)
    outputs = cached_attention(inputs, case.attributes, element=element, **options)
    for spec, out, right in zip(CACHED_ATTENTION.outputs, outputs, evaluate(CACHED_ATTENTION, case), strict=True):
        bound = CACHED_ATTENTION.tolerance[element] * np.abs(right).max()
        assert np.abs(out - right).max() <= bound, spec.name


@instructions
@pytest.mark.parametrize("in_place", [True, False])
@CASES
def test_matches_reference(case, in_place, instructions):
    check(case, instructions=instructions, in_place=in_place, threads=2, offset=4)


@instructions
@pytest.mark.parametrize("element", ["float16", "bfloat16"])
@CASES
def test_matches_reference_in_half_precision(case, element, instructions):
    check(case, element, instructions=instructions, offset=2)


@instructions
@CASES
def test_bits_are_the_same_for_any_number_of_threads(case, instructions):
    results = [
        cached_attention(case.inputs, case.attributes, instructions=instructions, threads=n)[0] for n in (1, 2, 3)
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])


@instructions
def test_what_is_beyond_the_text_is_not_read(instructions):
    """Not a value of it: NaN would show in the sums, be its weight 0."""
    case = next(case for case in CACHED_ATTENTION.cases() if case.name == "14x64-halves-1-after-700")
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    for name in ("past_key", "past_value"):
        inputs[name][:, :, 700:] = np.nan
    given = cached_attention(inputs, case.attributes, instructions=instructions)[0]
    assert np.array_equal(given, cached_attention(case.inputs, case.attributes, instructions=instructions)[0])


@instructions
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad, instructions):
    """In the heads that read it, and in no other."""
    case = next(case for case in CACHED_ATTENTION.cases() if case.name == "14x64-halves-1-after-700")
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    inputs["past_value"][0, 1, 3, 5] = bad
    y = cached_attention(inputs, case.attributes, instructions=instructions)[0].reshape(14, 64)
    assert np.isfinite(y[:7]).all()
    assert not np.isfinite(y[7:, 5]).any()
