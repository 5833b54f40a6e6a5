"""The custom ops for CUDA in ONNX Runtime, as far as there need be no GPU: for its CPU, over kernels of the CPU's.

What only a GPU can show, that inputs lie there and scales are copied from there, no test here shows.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from clada.ops import LOAD_SIGNAL, OPS, QUANTIZED, QUANTIZED_LINEAR, SPARSE_GATED_FFN
from clada.ops.record import Array, Case, Op, evaluate
from gpu_suite.build import onnxruntime_headers
from tests.conftest import ROOT
from tests.native.cases import check_outputs, sized_case
from tests.support.op_backends import body_model, make_constant
from tests.support.stand_ins import build_stand_in

TOKEN_OPS = pytest.mark.parametrize("op", [op for op in OPS.values() if op is not LOAD_SIGNAL], ids=lambda op: op.name)
GATED = QUANTIZED[SPARSE_GATED_FFN.name]
pytestmark = pytest.mark.skipif(onnxruntime_headers(ROOT) is None, reason="ONNX Runtime's headers are not here")


@pytest.fixture(scope="module")
def library() -> Path:
    """Made of the sources but for the provider that they are for."""
    return build_stand_in("clada_onnxruntime_cuda_stand_in")


def session(library: Path, op: Op, case: Case, constant: bool, **changes: Array) -> onnxruntime.InferenceSession:
    """Of one node in float32, its codes and scales constants or not, some of them others."""
    model = body_model(op, "float32", case.attributes, 20)
    del model.functions[:]
    if constant:
        make_constant(model, given(op, case) | changes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def given(op: Op, case: Case) -> dict[str, Array]:
    arrays = {spec.name: np.asarray(case.inputs[spec.name]) for spec in op.inputs}
    return {
        spec.name: arrays[spec.name].astype(np.float32) if spec.dtype == "T" else arrays[spec.name]
        for spec in op.inputs
    }


@pytest.mark.parametrize("constant", [True, False])
@TOKEN_OPS
def test_sample_cases(library, op, constant):
    for case in list(op.cases())[::3]:
        ready, inputs = session(library, op, case, constant), given(op, case)
        outputs = ready.run(None, {value.name: inputs[value.name] for value in ready.get_inputs()})
        for spec, out, expected in zip(op.outputs, outputs, evaluate(op, case), strict=True):
            tolerance = 0 if spec.dtype == "int32" else op.tolerance["float32"]
            assert np.abs(out - expected).max() <= tolerance * np.abs(expected).max(), (case.name, spec.name)


@pytest.mark.fault(
    "native", "a batch, text, width or layer of no size in the custom ops for CUDA", now="no outputs, or zeros"
)
@TOKEN_OPS
def test_every_size_may_be_0(library, op):
    for shape in ((0, 2, 32, 5), (2, 0, 32, 5), (2, 2, 0, 5), (2, 2, 32, 0), (2, 9, 0, 5), (2, 9, 32, 0), (0, 0, 0, 0)):
        case = sized_case(op, *shape)
        inputs = given(op, case)
        check_outputs(op, case, session(library, op, case, False).run(None, inputs), "float32")


@pytest.mark.parametrize(
    ("op", "name"), [(GATED, "s_gate"), (GATED, "s_up"), (GATED, "s_down"), (QUANTIZED_LINEAR, "s")]
)
@pytest.mark.parametrize(("scale", "word"), [(0, "zero"), (-0.0, "zero"), (-np.inf, "infinite"), (np.nan, "NaN")])
def test_scales_that_cannot_be_used_are_named_when_the_model_is_loaded(library, op, name, scale, word):
    case = next(op.cases())
    scales = case.inputs[name].copy()
    scales[5, 2] = scale
    with pytest.raises(Exception, match=f"{op.name}: {name} has a scale that is {word}, in row 5; export the model"):
        session(library, op, case, True, **{name: scales})


@pytest.mark.parametrize(
    ("op", "misfit"),
    [
        (GATED, "48 bytes a row do not fit D=96 weights of 8 bits"),
        (QUANTIZED_LINEAR, "block_size 32 does not divide the width N=48"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_sizes_that_do_not_fit_are_named(library, op, misfit):
    """Of 4-bit codes that are said to have 8."""
    case = next(op.cases())
    assert case.attributes["bits"] == 4
    other = Case(case.name, case.inputs, {**case.attributes, "bits": 8})
    with pytest.raises(Exception, match=f"{op.name}: {misfit}"):
        session(library, op, other, False).run(None, given(op, case))


def test_scales_that_do_not_fit_a_row_are_named(library):
    case = next(QUANTIZED_LINEAR.cases())
    inputs = given(QUANTIZED_LINEAR, case)
    inputs["s"] = np.repeat(inputs["s"], 2, axis=1)
    with pytest.raises(Exception, match=f"{QUANTIZED_LINEAR.name}: 6 scales a row do not fit N=96 in blocks of 32"):
        session(library, QUANTIZED_LINEAR, case, False).run(None, inputs)


def test_rows_of_more_weights_than_can_be_counted_are_named(library):
    case = sized_case(QUANTIZED_LINEAR, 1, 1, 0, 1)
    inputs = given(QUANTIZED_LINEAR, case) | {"w": np.zeros((0, 2**62), np.int8)}
    with pytest.raises(Exception, match=f"block_size 32 does not divide the width N={2**63 - 2}"):
        session(library, QUANTIZED_LINEAR, case, False).run(None, inputs)


def test_every_op_is_there(library):
    for op in OPS.values():
        session(library, op, next(op.cases()), False)
