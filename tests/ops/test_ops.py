"""Every op, on every backend, against its float64 reference."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from clada.errors import CladaError
from clada.ops import DOMAIN, LOAD_SIGNAL, OPS, QUANTIZED, SPARSE_GATED_FFN, SPARSE_LINEAR
from clada.ops.activations import ACTIVATIONS
from clada.ops.onnx import function_proto, schema
from clada.ops.record import Case, Op, evaluate
from clada.ops.torch import ACTIVATIONS as TORCH_ACTIVATIONS
from clada.ops.torch import torch_op
from tests.conftest import ROOT
from tests.support.op_backends import BACKENDS, BFLOAT16, body_model, make_constant

CASES = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases()]
NARROW_CASES = [case for case in CASES if any(spec.narrow for spec in case.values[0].inputs)]
FLOAT_CASES = [case for case in CASES if case.values[0] not in QUANTIZED.values()]
DTYPES = ("float32", "float16")
backend = pytest.mark.parametrize("backend", BACKENDS)


def cast(op: Op, case: Case, dtype: str, narrow: bool = False) -> tuple[Case, list[np.ndarray]]:
    """The case with its float inputs rounded to a dtype, and those inputs in that dtype; narrow ones in bfloat16."""
    low = [
        np.asarray(case.inputs[spec.name]).astype(BFLOAT16 if narrow and spec.narrow else dtype)
        if spec.dtype == "T"
        else np.asarray(case.inputs[spec.name])
        for spec in op.inputs
    ]
    rounded = {
        spec.name: a.astype(np.float64) if spec.dtype == "T" else a for spec, a in zip(op.inputs, low, strict=True)
    }
    return dataclasses.replace(case, inputs=rounded), low


def with_inputs(case: Case, **changes: np.ndarray) -> Case:
    return dataclasses.replace(case, inputs={**case.inputs, **changes})


def case_of(op: Op, name: str) -> Case:
    return next(c for c in op.cases() if c.name == name)


# Of a process of its own, which has loaded nothing before: the memory that loading a file takes at most.
_LOAD = """
import sys
import onnxruntime

def peak():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = peak()
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(peak() - before)
"""


def test_body_unpacks_weights_in_little_memory(tmp_path):
    """ONNX Runtime evaluates the body when it loads a file, and keeps each step of it until all are done."""
    op, shape = QUANTIZED[SPARSE_GATED_FFN.name], (2048, 2048)
    model = body_model(op, "float32", {"bits": 4, "block_size": 32, "activation": "silu"}, 20)
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (shape[0], shape[1] // 2), np.int8)
    scales = np.full((shape[0], shape[1] // 32), 0.01, np.float16)
    make_constant(
        model, {spec.name: codes if spec.role == "matrix" else scales for spec in op.inputs if spec.dtype != "T"}
    )
    onnx.save(model, tmp_path / "model.onnx")
    command = [sys.executable, "-c", _LOAD, tmp_path / "model.onnx"]
    taken = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    # Seven times what they are in float32, all that ONNX Runtime takes for itself with it.
    assert 4 < taken / (3 * np.prod(shape)) < 28


@backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_matches_reference(op, case, dtype, backend):
    case, inputs = cast(op, case, dtype)
    outputs = BACKENDS[backend](op, inputs, case.attributes)
    for spec, out, expected in zip(op.outputs, outputs, evaluate(op, case), strict=True):
        assert str(out.dtype) == (dtype if spec.dtype == "T" else spec.dtype), spec.name
        assert out.shape == expected.shape, spec.name
        if out.dtype.kind == "i":
            np.testing.assert_array_equal(out, expected, err_msg=spec.name)
        else:
            bound = op.tolerance[dtype] * np.abs(expected).max()
            assert np.abs(out - expected).max() <= bound, f"{spec.name}: needs {np.abs(out - expected).max():.2e}"


@backend
@pytest.mark.parametrize(("op", "case"), NARROW_CASES)
def test_weights_in_bfloat16_are_as_exact_as_in_float32(op, case, backend):
    case, inputs = cast(op, case, "float32", narrow=True)
    outputs = BACKENDS[backend](op, inputs, case.attributes)
    for spec, out, expected in zip(op.outputs, outputs, evaluate(op, case), strict=True):
        assert str(out.dtype) == ("float32" if spec.dtype == "T" else spec.dtype), spec.name
        bound = 0 if out.dtype.kind == "i" else op.tolerance["float32"] * np.abs(expected).max()
        assert np.abs(out - expected).max() <= bound, spec.name


@pytest.mark.parametrize(("op", "case"), FLOAT_CASES)
def test_body_is_as_exact_as_torch_in_half_precision(op, case):
    """The function body loses at most twice as much to float16 as plain torch does."""
    case, inputs = cast(op, case, "float16")
    body = BACKENDS["body-opset20"](op, inputs, case.attributes)
    plain = BACKENDS["torch"](op, inputs, case.attributes)
    for out, low, expected in zip(body, plain, evaluate(op, case), strict=True):
        floor = 1e-3 * np.abs(expected).max()
        assert np.abs(out - expected).max() <= 2 * np.abs(low - expected).max() + floor


@pytest.mark.parametrize(("op", "case"), CASES)
def test_torch_op_matches_reference_in_bfloat16(op, case):
    """Its own test: NumPy, and so ONNX Runtime's Python API, has no bfloat16."""
    low = {
        spec.name: torch.from_numpy(case.inputs[spec.name]).to(torch.bfloat16 if spec.dtype == "T" else None)
        for spec in op.inputs
    }
    rounded = {name: t.double().numpy() if t.dtype == torch.bfloat16 else t.numpy() for name, t in low.items()}
    outputs = torch_op(op)(*low.values(), *case.attributes.values())
    for spec, out, expected in zip(op.outputs, outputs, evaluate(op, with_inputs(case, **rounded)), strict=True):
        bound = 0 if spec.dtype == "int32" else op.tolerance["bfloat16"] * np.abs(expected).max()
        assert np.abs(out.double().numpy() - expected).max() <= bound, spec.name


def test_cases_keep_some_neurons_and_drop_some():
    """The thresholds of the mixed cases are between the activations, not outside them."""
    for op in (OPS["SparseGatedFFN"], OPS["SparseFFN"]):
        for case in op.cases():
            active, neurons = evaluate(op, case)[1], case.inputs["pool"].sum(axis=-1)[:, None]
            if "-mixed-B3-S17" in case.name:
                scored = active[case.inputs["scale"] > 0]
                assert 0.2 * neurons.mean() < scored.mean() < 0.8 * neurons.mean(), case.name
            elif "nothing" in case.name or "padding" in case.name or "empty_pool" in case.name:
                assert not active.any(), case.name


@backend
def test_padding_is_zero_and_scores_nothing(backend):
    case, inputs = cast(SPARSE_GATED_FFN, case_of(SPARSE_GATED_FFN, "silu-padding-B3-S2"), "float32")
    y, active, score = BACKENDS[backend](SPARSE_GATED_FFN, inputs, case.attributes)
    assert not y.any()
    assert not active.any()
    assert not score.any()


@backend
def test_nan_activation_is_kept_and_shows(backend):
    case = case_of(SPARSE_GATED_FFN, "silu-mixed-B1-S2")
    x = case.inputs["x"].copy()
    x[0, 0, 0] = np.nan
    case, inputs = cast(SPARSE_GATED_FFN, with_inputs(case, x=x), "float32")
    y, active, _ = BACKENDS[backend](SPARSE_GATED_FFN, inputs, case.attributes)
    assert np.isnan(y[0, 0]).all()
    assert active[0, 0] == case.inputs["pool"].sum()
    np.testing.assert_array_equal(active, evaluate(SPARSE_GATED_FFN, case)[1])


@backend
def test_infinite_input_gives_the_ieee_answer(backend):
    case = case_of(SPARSE_GATED_FFN, "relu-mixed-B1-S2")
    x = case.inputs["x"].copy()
    x[0, 0, 0] = np.inf
    case, inputs = cast(SPARSE_GATED_FFN, with_inputs(case, x=x), "float32")
    y, active, _ = BACKENDS[backend](SPARSE_GATED_FFN, inputs, case.attributes)
    expected = evaluate(SPARSE_GATED_FFN, case)
    np.testing.assert_array_equal(active, expected[1])
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected[0]))


@backend
def test_infinite_threshold_drops_all_but_scale_zero_keeps_all(backend):
    case = case_of(SPARSE_GATED_FFN, "silu-mixed-B1-S2")
    changes = {
        "threshold": np.full(case.inputs["threshold"].shape, np.inf, np.float32),
        "scale": np.float32([[1, 0]]),
    }
    case, inputs = cast(SPARSE_GATED_FFN, with_inputs(case, **changes), "float32")
    active = BACKENDS[backend](SPARSE_GATED_FFN, inputs, case.attributes)[1]
    assert active.tolist() == [[0, case.inputs["pool"].sum()]]


@backend
def test_load_signal_of_nan_logits_is_nan(backend):
    case = case_of(LOAD_SIGNAL, "B3-V7-spread4.0")
    logits = case.inputs["logits"].copy()
    logits[1, 2] = np.nan
    case, inputs = cast(LOAD_SIGNAL, with_inputs(case, logits=logits), "float32")
    for out in BACKENDS[backend](LOAD_SIGNAL, inputs, case.attributes):
        assert np.isnan(out).tolist() == [False, True, False]


@backend
def test_load_signal_takes_masked_logits(backend):
    """A logit of -inf has probability 0: infinite surprisal where it was read, nothing in the entropy."""
    case = case_of(LOAD_SIGNAL, "B3-V7-spread4.0")
    logits = case.inputs["logits"].copy()
    logits[:, 3] = -np.inf
    case, inputs = cast(LOAD_SIGNAL, with_inputs(case, logits=logits, token=np.array([3, 0, 1])), "float32")
    outputs = BACKENDS[backend](LOAD_SIGNAL, inputs, case.attributes)
    for spec, out, expected in zip(LOAD_SIGNAL.outputs, outputs, evaluate(LOAD_SIGNAL, case), strict=True):
        np.testing.assert_allclose(out, expected, rtol=1e-5, err_msg=spec.name)
    assert np.isposinf(outputs[2][0])


@backend
def test_load_signal_with_equal_knots(backend):
    """Knots that coincide make a step, not a division by zero."""
    case = case_of(LOAD_SIGNAL, "B3-V7-spread4.0")
    knots = np.float32([1, 1, 1])
    case, inputs = cast(LOAD_SIGNAL, with_inputs(case, surprisal_knots=knots, entropy_knots=knots), "float32")
    load = BACKENDS[backend](LOAD_SIGNAL, inputs, case.attributes)[1]
    _, _, surprisal, entropy = evaluate(LOAD_SIGNAL, case)
    weight = case.attributes["surprisal_weight"]
    np.testing.assert_allclose(load, weight * (surprisal > 1) + (1 - weight) * (entropy > 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_up": np.zeros((5, 24))}, r"w_up has shape \[5, 24\], expected \[F=37, D=24\]"),
        ({"x": np.zeros((2, 24))}, r"x has shape \[2, 24\], expected \[B, S, D\]"),
        ({"pool": np.ones((1, 37), np.int64)}, "pool is int64, expected bool"),
        ({"threshold": np.zeros(37)}, "threshold is float64, expected float32"),
        ({"scale": np.zeros((1, 3), np.float32)}, r"scale has shape \[1, 3\], expected \[B=1, S=2\]"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    op, case = SPARSE_GATED_FFN, with_inputs(case_of(SPARSE_GATED_FFN, "silu-mixed-B1-S2"), **change)
    with pytest.raises(CladaError, match=message):
        evaluate(op, case)
    _, inputs = cast(op, case, "float32")
    with pytest.raises(CladaError, match=message):
        torch_op(op)(*map(torch.from_numpy, inputs), "silu")


def test_wrong_float_types_are_named():
    _, inputs = cast(SPARSE_GATED_FFN, case_of(SPARSE_GATED_FFN, "silu-mixed-B1-S2"), "float64")
    with pytest.raises(CladaError, match="x is float64, expected one of float32, float16, bfloat16"):
        torch_op(SPARSE_GATED_FFN)(*map(torch.from_numpy, inputs), "silu")
    inputs = [a.astype(np.float32) if a.dtype == np.float64 else a for a in inputs]
    inputs[1] = inputs[1].astype(np.float16)
    with pytest.raises(CladaError, match="w_gate is float16, expected float32"):
        torch_op(SPARSE_GATED_FFN)(*map(torch.from_numpy, inputs), "silu")


def test_weights_are_narrow_beside_float32_alone():
    _, inputs = cast(SPARSE_LINEAR, case_of(SPARSE_LINEAR, "mixed-B1-S2"), "float32")
    x, w, *others = map(torch.from_numpy, inputs)
    with pytest.raises(CladaError, match="w is float16, expected float32 or bfloat16"):
        torch_op(SPARSE_LINEAR)(x, w.half(), *others)
    with pytest.raises(CladaError, match="w is bfloat16, expected float16"):
        torch_op(SPARSE_LINEAR)(x.half(), w.bfloat16(), *others)


def test_unknown_activation_is_refused():
    with pytest.raises(CladaError, match="activation='swish' is not one of silu, gelu, gelu_tanh, relu"):
        function_proto(SPARSE_GATED_FFN, {"activation": "swish"}, 20)


def test_torch_knows_the_same_activations():
    assert list(TORCH_ACTIVATIONS) == list(ACTIVATIONS)


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_torch_registration_is_consistent(op):
    """Schema, fake and eager agree, as torch.library's own check sees them."""
    case = next(iter(op.cases()))
    _, inputs = cast(op, case, "float32")
    torch.library.opcheck(
        torch_op(op),
        (*map(torch.from_numpy, inputs), *case.attributes.values()),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_names_collide_with_no_builtin(op):
    """TensorRT's parser looks builtins up by name alone."""
    assert op.name not in {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain != DOMAIN}
    assert schema(op).domain == DOMAIN
