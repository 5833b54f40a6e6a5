"""The kernels against the float64 references: every case, every instruction set, every type, guarded memory."""

import dataclasses

import numpy as np
import pytest

from clada.ops import LOAD_SIGNAL, SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.activations import ACTIVATIONS
from clada.ops.record import FLOAT_TYPES, Case, Op, evaluate
from tests.native import kernels_c
from tests.native.calls import from_element, to_element
from tests.native.cases import FFN_CASES, check_outputs, dense_case, large_case, rounded_case
from tests.support.exhaustive import few

ALL_INSTRUCTIONS = ("avx512_vnni", "avx512", "avx_vnni", "avx2", "portable")
INSTRUCTIONS = [name for name in ALL_INSTRUCTIONS if kernels_c.available(name) and "vnni" not in name]
instructions = pytest.mark.parametrize("instructions", INSTRUCTIONS)
weight_element = pytest.mark.parametrize("weight_element", FLOAT_TYPES)


def check_ffn(op: Op, case: Case, *, element: str = "float32", weight_element: str = "float32", **options) -> None:
    case = rounded_case(case, element, weight_element)
    outputs = kernels_c.sparse_ffn(
        op, case.inputs, case.attributes, element=element, weight_element=weight_element, **options
    )
    check_outputs(op, case, outputs, element)


@instructions
@weight_element
@pytest.mark.parametrize(("op", "case"), FFN_CASES)
def test_matches_reference(op, case, weight_element, instructions):
    """Each weight type with float32 around it; the odd ones of the cases' sizes fill no vector."""
    check_ffn(op, case, instructions=instructions, weight_element=weight_element)


@instructions
@pytest.mark.parametrize("element", ["float16", "bfloat16"])
@pytest.mark.parametrize(("op", "case"), FFN_CASES)
def test_matches_reference_in_half_precision(op, case, element, instructions):
    check_ffn(op, case, instructions=instructions, element=element, weight_element=element, offset=2)


LARGE = [(1, 1, 300, 1000), (3, 2, 129, 515), (2, 7, 200, 531), (2, 270, 140, 300), (1, 33, 64, 48)]


@instructions
@weight_element
@pytest.mark.parametrize("threads", few([1, 2], [2]))
@pytest.mark.parametrize("sizes", LARGE, ids=str)
@pytest.mark.parametrize("op", [SPARSE_GATED_FFN, SPARSE_FFN], ids=lambda op: op.name)
def test_sizes_past_every_block(op, sizes, threads, weight_element, instructions):
    case = large_case(op, *sizes)
    if weight_element != "float32":
        # Rounding moves activations across thresholds made for exact weights; dense, nothing can flip.
        case = dense_case(case)
    check_ffn(op, case, instructions=instructions, weight_element=weight_element, threads=threads, offset=4)


@instructions
@pytest.mark.parametrize("sizes", LARGE, ids=str)
def test_bits_are_the_same_for_any_number_of_threads(sizes, instructions):
    case = large_case(SPARSE_GATED_FFN, *sizes)
    first, *others = [
        kernels_c.sparse_ffn(SPARSE_GATED_FFN, case.inputs, case.attributes, instructions=instructions, threads=threads)
        for threads in (1, 2, 3, 1)
    ]
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@instructions
@pytest.mark.parametrize("sequence", [1, 20])
def test_nan_is_kept_and_shows(sequence, instructions):
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 40, 100)
    case.inputs["x"][0, 0, 3] = np.nan
    y, active, _ = kernels_c.sparse_ffn(SPARSE_GATED_FFN, case.inputs, case.attributes, instructions=instructions)
    assert np.isnan(y[0, 0]).all()
    assert active[0, 0] == case.inputs["pool"].sum()
    assert np.isfinite(y[0, 1:]).all()


@instructions
@pytest.mark.parametrize("sequence", [1, 20])
def test_infinity_gives_the_ieee_answer(sequence, instructions):
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 40, 100)
    case.inputs["x"][0, 0, 3] = np.inf
    case = dataclasses.replace(case, attributes={"activation": "relu"})
    y, active, _ = kernels_c.sparse_ffn(SPARSE_GATED_FFN, case.inputs, case.attributes, instructions=instructions)
    expected = evaluate(SPARSE_GATED_FFN, case)
    np.testing.assert_array_equal(active[0, 0], expected[1][0, 0])
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected[0]))


@instructions
@pytest.mark.parametrize("sequence", [1, 20])
def test_weights_of_neurons_outside_the_pool_are_not_used(sequence, instructions):
    """Row by row they are not even read: rows of NaN there change nothing."""
    case = large_case(SPARSE_GATED_FFN, 1, sequence, 40, 100)
    plain = kernels_c.sparse_ffn(SPARSE_GATED_FFN, case.inputs, case.attributes, instructions=instructions)
    outside = ~case.inputs["pool"][0]
    for name in ("w_gate", "w_up"):
        case.inputs[name][outside] = np.nan
    poisoned = kernels_c.sparse_ffn(SPARSE_GATED_FFN, case.inputs, case.attributes, instructions=instructions)
    for a, b in zip(plain, poisoned, strict=True):
        np.testing.assert_array_equal(a, b)


@instructions
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(activation, instructions):
    """One neuron a value: y is the activation itself, to a few units in the last place of float32."""
    z = np.concatenate([np.linspace(-95, 95, 4001), np.linspace(-1, 1, 1001), [0.0, 1e-30, -1e-30]]).astype(np.float32)
    one = np.ones((1, 1), np.float32)
    inputs = {
        "x": one.reshape(1, 1, 1),
        "w_in": z[:, None],
        "b_in": np.zeros(len(z), np.float32),
        "w_out": np.zeros((len(z), 1), np.float32),
        "b_out": np.zeros(1, np.float32),
        "threshold": np.zeros(len(z), np.float32),
        "scale": 0 * one,
        "pool": np.zeros((1, len(z)), np.bool_),
    }
    expected = ACTIVATIONS[activation].reference(z.astype(np.float64))
    out = np.zeros(len(z))
    for at in range(0, len(z), 37):  # h of one neuron at a time is y where its down row is 1
        inputs["pool"][:] = False
        inputs["w_out"][:] = 0
        inputs["pool"][0, at], inputs["w_out"][at] = True, 1
        out[at] = kernels_c.sparse_ffn(SPARSE_FFN, inputs, {"activation": activation}, instructions=instructions)[0][
            0, 0, 0
        ]
        assert out[at] == pytest.approx(expected[at], rel=1e-6, abs=3e-7 * max(1.0, abs(float(z[at])))), z[at]


@instructions
@pytest.mark.parametrize("element", FLOAT_TYPES)
@pytest.mark.parametrize("case", LOAD_SIGNAL.cases(), ids=lambda case: case.name)
def test_load_signal_matches_reference(case, element, instructions):
    case = rounded_case(case, element, "float32")
    weight = float(case.attributes["surprisal_weight"])
    result, outputs = kernels_c.load_signal(case.inputs, weight, instructions=instructions, element=element, offset=4)
    assert result == 0
    for spec, out, expected in zip(LOAD_SIGNAL.outputs, outputs, evaluate(LOAD_SIGNAL, case), strict=True):
        bound = LOAD_SIGNAL.tolerance["float32"] * np.abs(expected).max()
        assert np.abs(out - expected).max() <= bound, spec.name


@instructions
@pytest.mark.parametrize("token", [-1, 7])
def test_token_outside_the_vocabulary_is_named_and_not_read(token, instructions):
    case = next(c for c in LOAD_SIGNAL.cases() if c.name == "B3-V7-spread4.0")
    inputs = {**case.inputs, "token": np.array([0, token, 2])}
    assert kernels_c.load_signal(inputs, 0.5, instructions=instructions)[0] == 2


@instructions
def test_rounding_to_bfloat16(instructions):
    """Ties to even, infinities as they are, NaN stays NaN, overflow to infinity."""
    values = np.float32([0, -0.0, 1, 1.00390625, 1.01171875, 3.4e38, np.inf, -np.inf, np.nan, 1e-40])
    bits = kernels_c.to_bfloat16(values, instructions)
    assert bits[[0, 1, 2, 3, 4]].tolist() == [0, 0x8000, 0x3F80, 0x3F80, 0x3F82]
    assert bits[[5, 6, 7]].tolist() == [0x7F80, 0x7F80, 0xFF80]
    assert np.isnan(from_element(bits[8:9], "bfloat16"))
    rng = np.random.default_rng(0)
    random = (rng.standard_normal(100_000) * 10.0 ** rng.integers(-30, 30, 100_000)).astype(np.float32)
    np.testing.assert_array_equal(kernels_c.to_bfloat16(random, instructions), to_element(random, "bfloat16"))


@instructions
def test_every_float16_is_widened_and_rounded_back(instructions):
    """Through a layer whose one neuron is off, y is b_out: it carries every finite float16 through."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = bits[np.isfinite(bits)]
    inputs = {
        "x": np.zeros((1, 1, len(values)), np.float16),
        "w_in": np.zeros((1, len(values)), np.float16),
        "b_in": np.zeros(1, np.float16),
        "w_out": np.zeros((1, len(values)), np.float16),
        "b_out": values,
        "threshold": np.ones(1, np.float32),
        "scale": np.ones((1, 1), np.float32),
        "pool": np.ones((1, 1), np.bool_),
    }
    y, _, _ = kernels_c.sparse_ffn(
        SPARSE_FFN,
        inputs,
        {"activation": "relu"},
        instructions=instructions,
        element="float16",
        weight_element="float16",
    )
    np.testing.assert_array_equal(y[0, 0], values.astype(np.float64))
