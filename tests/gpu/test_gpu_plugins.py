"""TensorRT plugins in the GPU suite, as far as no GPU is needed: they compute on the CPU's memory."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clada.benchmark.timing import wall_seconds
from clada.errors import CladaError
from clada.ops import LOAD_SIGNAL, OPS
from clada.ops.record import FLOAT_TYPES
from gpu_suite import suite
from gpu_suite.build import PLUGINS, PROBE, Libraries, built_here
from gpu_suite.device import Device
from gpu_suite.plugins import Plugins, load_plugins
from gpu_suite.timing import LeftOut
from tests.conftest import ROOT
from tests.gpu.conftest import needs_nvcc
from tests.support.stand_ins import build_stand_in

# What replays as a graph would.
HOST = Device("cpu", lambda: 0, lambda _, __: torch.empty(0), lambda: None, lambda run: run, wall_seconds)

needs_headers = pytest.mark.skipif(
    "TENSORRT_INCLUDE_DIR" not in os.environ, reason="TENSORRT_INCLUDE_DIR is not set: plugins cannot be compiled"
)


@pytest.fixture(scope="module")
def libraries() -> Libraries:
    """The plugins over the CPU's kernels, and what calls them."""
    targets = {PLUGINS: "clada_trt_stand_in", PROBE: PROBE}
    return lambda target: build_stand_in(targets[target])


@pytest.fixture(scope="module")
def loaded(libraries) -> Plugins:
    plugins = load_plugins(libraries, None, HOST)
    assert isinstance(plugins, Plugins)
    return plugins


@pytest.fixture
def fault() -> Iterator[ctypes.c_int]:
    """Fault to inject into the kernels: none, so far."""
    fault = ctypes.c_int.in_dll(ctypes.CDLL(str(build_stand_in("clada_cuda_stand_in"))), "clada_fault")
    yield fault
    fault.value = 0


@needs_headers
def test_every_op_passes_in_every_type(loaded):
    report = suite.check_plugins(loaded)
    assert report.passed
    assert [group.subject for group in report.parity] == [f"TensorRT:{op} {name}" for op in OPS for name in FLOAT_TYPES]
    # Each sample case: its outputs, a repetition, a graph, and what is around them.
    for group in report.parity:
        op = OPS[group.subject.split()[0].removeprefix("TensorRT:")]
        assert group.checks == (len(op.outputs) + 3) * len(list(op.cases()))


@needs_headers
@pytest.mark.parametrize(("number", "found"), [(1, "y"), (3, "written outside of outputs and workspace")])
def test_faults_are_found(loaded, fault, number, found):
    fault.value = number
    report = suite.check_plugins(loaded)
    for group in report.parity:
        assert {check.what for check in group.failed} == (set() if LOAD_SIGNAL.name in group.subject else {found})


@needs_headers
@pytest.mark.parametrize(
    ("number", "why"),
    [
        (6, "out of memory"),
        (
            7,
            "no kernel image is available for execution on the device; build the plugins for its architecture "
            "(CLADA_CUDA_ARCHITECTURES)",
        ),
    ],
)
def test_a_launch_that_fails_says_why(loaded, fault, number, why):
    fault.value = number
    with pytest.raises(CladaError) as failure:
        suite.check_plugins(loaded)
    line = f"error: SparseGatedFFN: the kernels could not be launched: {why}"
    assert str(failure.value) == f"a plugin of TensorRT's failed: {line}"


@needs_headers
def test_a_library_that_is_given_is_called(libraries, loaded, tmp_path):
    path = shutil.copy(libraries(PLUGINS), tmp_path)
    given = load_plugins(libraries, Path(path), HOST)
    assert isinstance(given, Plugins)
    assert given.release == loaded.release
    with pytest.raises(CladaError, match=r"libclada_plugin_probe.so is not a library of clada's TensorRT plugins"):
        load_plugins(libraries, libraries(PROBE), HOST)


def nothing_built(target: str) -> Path:
    pytest.fail(f"{target} was built")


def test_without_headers_they_are_left_out_with_the_reason(monkeypatch, capsys):
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR", raising=False)
    left_out = load_plugins(nothing_built, None, HOST)
    assert isinstance(left_out, LeftOut)
    report = suite.check_plugins(left_out)
    assert report.left_out == (left_out,)
    assert report.passed
    assert capsys.readouterr().out == (
        "left out: TensorRT's plugins: TENSORRT_INCLUDE_DIR is not set; set it to the folder of TensorRT's "
        "NvInferRuntime.h\n"
    )
    with pytest.raises(CladaError, match=r"libclada_trt.so cannot be called: TENSORRT_INCLUDE_DIR is not set"):
        load_plugins(nothing_built, Path("libclada_trt.so"), HOST)


def test_headers_that_are_not_there(monkeypatch, tmp_path):
    """Found before anything is built, in every part of the suite."""
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    for use in (lambda: load_plugins(nothing_built, None, HOST), lambda: built_here(ROOT, "sm_90", tmp_path)):
        with pytest.raises(CladaError, match=rf"TENSORRT_INCLUDE_DIR is {tmp_path}, which holds no NvInferRuntime.h"):
            use()


@needs_nvcc
def test_what_does_not_compile_is_said_in_one_line(checkout, monkeypatch, tmp_path):
    (tmp_path / "NvInferRuntime.h").write_text("#error these are none // class IPluginCreatorV3One\n")
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    build = built_here(checkout, "sm_90", tmp_path / "build")
    for target, what in ((PROBE, "the plugins' probe"), (PLUGINS, "the TensorRT plugins")):
        with pytest.raises(CladaError, match=rf"CMake cannot build {what} for sm_90: .*these are none") as failure:
            build(target)
        assert "\n" not in str(failure.value)
    assert not list(tmp_path.glob("build/*.so"))
