"""The CUDA kernels in the host emulation against the float64 references: every case and type, guarded memory.

Each call is run in several orders of blocks and threads with several kinds of garbage in the workspace; all have to
give the same bits.
"""

import dataclasses

import numpy as np
import pytest

from clada.ops import LOAD_SIGNAL, SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.record import FLOAT_TYPES, Array, Case, Op, evaluate
from tests.native import cuda_kernels_c
from tests.native.cases import FFN_CASES, check_outputs, dense_case, large_case, rounded_case
from tests.native.cuda_kernels_c import ROWWISE_TOKENS, RUNS
from tests.support.exhaustive import in_turn

FFN_OPS = pytest.mark.parametrize("op", [SPARSE_GATED_FFN, SPARSE_FFN], ids=lambda op: op.name)
elements = pytest.mark.parametrize("element", FLOAT_TYPES)
# Row by row, and as products of matrices.
sequences = pytest.mark.parametrize("sequence", [2, ROWWISE_TOKENS + 1])


def same_in_all_runs(call, *args, **options) -> tuple[Array, ...]:
    first, *others = [call(*args, run=run, **options) for run in RUNS]
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)
    return first


def run_ffn(op: Op, case: Case, **options) -> tuple[Array, ...]:
    return same_in_all_runs(cuda_kernels_c.sparse_ffn, op, case.inputs, case.attributes, **options)


def check_ffn(op: Op, case: Case, element: str, **options) -> None:
    case = rounded_case(case, element, element)
    tokens = case.inputs["scale"].size
    outputs = run_ffn(op, case, element=element, **options)
    check_outputs(op, case, outputs, element, rounded_products=tokens > ROWWISE_TOKENS)


@elements
@pytest.mark.parametrize(("op", "case"), FFN_CASES)
def test_matches_reference(op, case, element):
    check_ffn(op, case, element)


# Widths that are and are not whole vectors; one tile, one window and one staged part of x, and more than one of each.
LARGE = [(1, 1, 4160, 20), (1, 1, 72, 4200), (8, 1, 520, 70), (5, 1, 129, 515), (2, 3, 136, 300), (3, 1, 64, 48)]
PLACED = [*((sizes, 0) for sizes in LARGE), (LARGE[0], 4), (LARGE[2], 4)]


@pytest.mark.parametrize(("placed", "element"), in_turn(PLACED, FLOAT_TYPES), ids=str)
@FFN_OPS
def test_sizes_past_every_block(op, placed, element):
    sizes, offset = placed
    check_ffn(op, large_case(op, *sizes, element=element), element, offset=offset)


@FFN_OPS
@pytest.mark.parametrize(("batch", "element"), in_turn(range(1, 9), FLOAT_TYPES))
def test_every_batch_has_pools_of_its_own(op, batch, element):
    check_ffn(op, large_case(op, batch, 1, 40, 100, element=element), element)


@elements
@FFN_OPS
def test_many_tokens_are_products_of_matrices(op, element):
    case = large_case(op, 2, 7, 40, 100, element=element)
    # Half types round the products that are selected by.
    check_ffn(op, case if element == "float32" else dense_case(case), element, offset=2)


@pytest.mark.parametrize("sizes", [(1, 1030, 24, 40), (3, 343, 16, 37)], ids=str)
@FFN_OPS
def test_more_tokens_than_fit_a_chunk(op, sizes):
    """The second has its chunks begin within a sequence."""
    check_ffn(op, large_case(op, *sizes), "float32")


@FFN_OPS
@pytest.mark.parametrize(("element_offset", "element"), in_turn(range(1, 9), FLOAT_TYPES))
def test_every_misalignment(op, element_offset, element):
    size = 4 if element == "float32" else 2
    check_ffn(op, large_case(op, 1, 2, 64, 33, element=element), element, offset=size * element_offset)


@FFN_OPS
@pytest.mark.parametrize("width", range(1, 20))
def test_every_small_width(op, width):
    for neurons in (1, 16, 17):
        check_ffn(op, large_case(op, 1, 1, width, neurons), "float32")
        check_ffn(op, large_case(op, 1, 1, width, neurons, element="float16"), "float16")


@sequences
def test_nan_is_kept_and_shows(sequence):
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 40, 100)
    case.inputs["x"][0, 0, 3] = np.nan
    y, active, _ = run_ffn(SPARSE_GATED_FFN, case)
    assert np.isnan(y[0, 0]).all()
    assert active[0, 0] == case.inputs["pool"].sum()
    assert np.isfinite(y[0, 1:]).all()


@sequences
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_infinity_gives_the_ieee_answer(activation, sequence):
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 40, 100)
    case.inputs["x"][0, 0, 3] = np.inf
    case = dataclasses.replace(case, attributes={"activation": activation})
    y, active, _ = run_ffn(SPARSE_GATED_FFN, case)
    expected = evaluate(SPARSE_GATED_FFN, case)
    np.testing.assert_array_equal(active, expected[1])
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected[0]))


@sequences
@FFN_OPS
def test_infinite_thresholds_keep_nothing_but_what_is_dense(op, sequence):
    """0 times infinity is no number, and nothing is below it."""
    case = large_case(op, 1, sequence, 40, 100)
    case.inputs["threshold"][:] = np.inf
    case.inputs["scale"][0, :2] = 1, 0
    check_ffn(op, case, "float32")
    _, active, _ = run_ffn(op, case)
    assert active[0, :2].tolist() == [0, case.inputs["pool"].sum()]


@sequences
def test_weights_of_neurons_that_are_not_kept_are_not_used(sequence):
    """Row by row they are not even read: rows of NaN there change nothing."""
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 40, 100)
    case.inputs["scale"][:] = 0
    plain = run_ffn(SPARSE_GATED_FFN, case)
    outside = ~case.inputs["pool"][0]
    for name in ("w_gate", "w_up", "w_down") if sequence <= ROWWISE_TOKENS else ("w_gate", "w_up"):
        case.inputs[name][outside] = np.nan
    for a, b in zip(plain, run_ffn(SPARSE_GATED_FFN, case), strict=True):
        np.testing.assert_array_equal(a, b)


@sequences
def test_what_is_launched_depends_on_sizes_alone(sequence):
    """A CUDA graph repeats the launches that it saw."""
    case = large_case(SPARSE_GATED_FFN, 2, sequence, 40, 100)
    nothing = {**case.inputs, "scale": -1 - 0 * case.inputs["scale"], "pool": ~np.isfinite(case.inputs["pool"])}
    seen = []
    for inputs in (case.inputs, nothing):
        cuda_kernels_c.launches()
        cuda_kernels_c.sparse_ffn(SPARSE_GATED_FFN, inputs, case.attributes)
        seen.append(cuda_kernels_c.launches())
    assert seen[0] and seen[0] == seen[1]


def test_what_cannot_be_computed_is_an_invalid_value():
    invalid_value = 1
    few, many = (large_case(SPARSE_FFN, 1, tokens, 8, 4).inputs for tokens in (1, ROWWISE_TOKENS + 1))
    assert cuda_kernels_c.sparse_ffn_error(SPARSE_FFN, few, {"activation": "silu"}, "float32") == 0
    assert cuda_kernels_c.sparse_ffn_error(SPARSE_FFN, many, {"activation": "silu"}, "float32") == invalid_value
    assert cuda_kernels_c.sparse_ffn_error(SPARSE_FFN, few, {"activation": "silu"}, "float16") == invalid_value


def check_load_signal(case: Case, element: str = "float32", offset: int = 0) -> None:
    case = rounded_case(case, element, "float32")
    weight = float(case.attributes["surprisal_weight"])
    outputs = same_in_all_runs(cuda_kernels_c.load_signal, case.inputs, weight, element=element, offset=offset)
    for spec, out, expected in zip(LOAD_SIGNAL.outputs, outputs, evaluate(LOAD_SIGNAL, case), strict=True):
        bound = LOAD_SIGNAL.tolerance["float32"] * np.abs(expected).max()
        assert np.abs(out - expected).max() <= bound, spec.name


@elements
@pytest.mark.parametrize("case", LOAD_SIGNAL.cases(), ids=lambda case: case.name)
def test_load_signal_matches_reference(case, element):
    check_load_signal(case, element, offset=4)


def signal_case(batch: int, vocabulary: int) -> Case:
    rng = np.random.default_rng([batch, vocabulary])
    inputs = {
        "logits": rng.standard_normal((batch, vocabulary)).astype(np.float32),
        "token": rng.integers(0, vocabulary, batch),
        "surprisal_knots": np.float32([0, 0, 1, 5, 20]),
        "entropy_knots": np.float32([0, 1, 1, 5, 9]),
        "scale_knots": np.float32([1.2, 1, 0.5]),
    }
    return Case("signal", inputs, {"surprisal_weight": 0.4})


@pytest.mark.parametrize("batch", range(1, 9))
def test_load_signal_of_every_batch_and_odd_vocabularies(batch):
    for vocabulary in (1, 2, 255, 257, 4096, 4097, 8195):
        check_load_signal(signal_case(batch, vocabulary))


def test_logits_of_minus_infinity_add_nothing():
    case = signal_case(3, 9000)
    logits = case.inputs["logits"]
    logits[0, 10:] = -np.inf
    logits[1, :8500] = -np.inf
    logits[2, 1:] = -np.inf
    case.inputs["token"][:] = 3, 8700, 0
    check_load_signal(case)


def test_a_token_of_probability_0_is_infinitely_surprising():
    case = signal_case(2, 300)
    case.inputs["logits"][0, 7], case.inputs["token"][0] = -np.inf, 7
    outputs = same_in_all_runs(cuda_kernels_c.load_signal, case.inputs, 0.4)
    expected = evaluate(LOAD_SIGNAL, case)
    assert outputs[2][0] == np.inf
    for out, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(out, wanted, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_shows_in_its_row_alone(value):
    case = signal_case(3, 5000)
    case.inputs["logits"][1, 4700] = value
    outputs = same_in_all_runs(cuda_kernels_c.load_signal, case.inputs, 0.4)
    for out in outputs:
        assert np.isnan(out[1])
        assert np.isfinite(out[[0, 2]]).all()


@pytest.mark.parametrize("token", [-1, 300, 2**40])
def test_a_token_outside_the_vocabulary_makes_its_row_nan(token):
    case = signal_case(3, 300)
    case.inputs["token"][1] = token
    outputs = same_in_all_runs(cuda_kernels_c.load_signal, case.inputs, 0.4)
    for out in outputs:
        assert np.isnan(out[1])
        assert np.isfinite(out[[0, 2]]).all()
