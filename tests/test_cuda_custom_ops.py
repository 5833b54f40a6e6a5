"""The custom ops for CUDA in ONNX Runtime, as far as there need be no GPU: for its CPU, over kernels of the CPU's.

What only a GPU can show, that inputs lie there and scales are copied from there, no test here shows.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from clada.benchmark.gpu.build import write_op_table
from clada.benchmark.gpu.model_needs import headers
from clada.plugins.ops import GPU_OPS, LOAD_SIGNAL, QUANTIZED, SPARSE_GATED_FFN
from clada.plugins.ops.record import Array, Case, Op, evaluate
from tests.conftest import ROOT
from tests.native.cases import check_outputs, sized_case
from tests.op_backends import body_model, make_constant

TOKEN_OPS = pytest.mark.parametrize(
    "op", [op for op in GPU_OPS.values() if op is not LOAD_SIGNAL], ids=lambda op: op.name
)
GATED = QUANTIZED[SPARSE_GATED_FFN.name]
PLUGINS = ROOT / "plugins"
pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None or headers(ROOT) is None, reason="nvcc or ONNX Runtime's headers are not here"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Made of the sources but for the provider that they are for."""
    folder = tmp_path_factory.mktemp("custom-ops")
    write_op_table(ROOT, folder)
    sources = shutil.copytree(PLUGINS / "onnxruntime" / "cuda", folder / "cuda")
    launch, provider = sources / "launch.h", '= "CUDAExecutionProvider"'
    assert provider in launch.read_text()
    launch.write_text(launch.read_text().replace(provider, "= nullptr"))
    path = folder / "libcustom_ops.so"
    folders = [sources, *(PLUGINS / name for name in ("onnxruntime", "kernels/cuda", "kernels")), folder]
    files = [sources / "custom_ops.cpp", PLUGINS / "onnxruntime" / "shapes.cpp"]
    files += [ROOT / "tests" / "cuda_stand_in.cpp", ROOT / "tests" / "tensorrt" / "stand_in.cpp"]
    # cudart's own functions are left to the stand-in.
    command = ["nvcc", "-shared", "-cudart=none", "-std=c++17", "-O1", "-Xcompiler=-fPIC", "-o", path]
    command += [*(f"-I{place}" for place in folders), "-isystem", headers(ROOT), *files]
    subprocess.run([*map(str, command)], check=True)
    return path


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


@pytest.mark.parametrize("name", ["s_gate", "s_up", "s_down"])
@pytest.mark.parametrize(("scale", "word"), [(0, "zero"), (-0.0, "zero"), (-np.inf, "infinite"), (np.nan, "NaN")])
def test_scales_that_cannot_be_used_are_named_when_the_model_is_loaded(library, name, scale, word):
    case = next(GATED.cases())
    scales = case.inputs[name].copy()
    scales[5, 2] = scale
    with pytest.raises(Exception, match=f"{GATED.name}: {name} has a scale that is {word}, in row 5; export the model"):
        session(library, GATED, case, True, **{name: scales})


def test_sizes_that_do_not_fit_are_named(library):
    case = next(GATED.cases())
    bits = 12 - case.attributes["bits"]
    other = Case(case.name, case.inputs, {**case.attributes, "bits": bits})
    inputs = given(GATED, case)
    with pytest.raises(Exception, match=rf"{GATED.name}: \d+ bytes a row do not fit D=96 weights of {bits} bits"):
        session(library, GATED, other, False).run(None, inputs)


def test_every_op_is_there(library):
    for op in GPU_OPS.values():
        session(library, op, next(op.cases()), False)
