"""Messages of ONNX Runtime become one line of ours, and it prints none of its own."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from clada.errors import CladaError
from clada.ops import graph_names
from clada.plugins.native_library import file_name
from clada.runtime.models import ort_cpu as backend
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel
from clada.runtime.models.ort_cpu_in_place import InPlaceModel
from clada.runtime.models.ort_errors import ONNXRUNTIME_ERRORS, one_line_errors, reason_of
from clada.runtime.threads import MOST_THREADS

CONTEXT = 64
KERNELS = pytest.mark.parametrize("kernels", ["native", "bodies"])
GRAPHS = pytest.mark.parametrize("name", ["model.onnx", "model.onnxruntime.onnx"])


def load(path: Path, kernels: str) -> OnnxRuntimeModel:
    execution = Execution(threads=1, kernels=kernels)
    in_place = ".onnxruntime" in path.name
    return InPlaceModel(path, CONTEXT, execution) if in_place else OnnxRuntimeModel(path, execution)


def read_tokens(model: OnnxRuntimeModel, ids: list[int]) -> None:
    inputs = {
        graph_names.INPUT_IDS: np.array([ids], np.int64),
        graph_names.ATTENTION_MASK: np.ones((1, len(ids)), np.int64),
        graph_names.POSITION_IDS: np.arange(len(ids))[None],
        graph_names.PAST_LOGITS: np.zeros((1, model.vocabulary), model.dtype),
        **{graph_names.pool(n): np.ones((1, f), np.bool_) for n, f in enumerate(model.neurons)},
    }
    model.step(inputs, model.empty_cache(1), [graph_names.LOGITS])


@pytest.fixture
def shorter_threshold(tiny_artifact, tmp_path) -> Path:
    """A copy of an artifact whose first layer has too few thresholds."""
    for file in tiny_artifact.parent.iterdir():
        shutil.copy(file, tmp_path)
    for path in tmp_path.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        threshold = next(t for t in model.graph.initializer if t.name == "threshold.0")
        threshold.CopyFrom(onnx.numpy_helper.from_array(np.zeros(threshold.dims[0] - 3, np.float32), threshold.name))
        path.write_bytes(model.SerializeToString())
    return tmp_path


@pytest.mark.fault("native", "a threshold of the wrong length", now="one line that names the node, and no other")
@GRAPHS
def test_a_threshold_of_the_wrong_length(shorter_threshold, name, capfd):
    model = load(shorter_threshold / name, "native")
    failed = r"ONNX Runtime [\d.]+ failed: SparseGatedFFN node '\S*': threshold has shape \[85\], expected \[F=88\]"
    with pytest.raises(CladaError) as caught:
        read_tokens(model, [1, 2, 3])
    assert re.fullmatch(failed, str(caught.value))
    assert capfd.readouterr() == ("", "")


@pytest.mark.fault("native", "an op that fails at run time", now="one line with ONNX Runtime's reason, and no other")
@KERNELS
@GRAPHS
def test_a_token_that_no_embedding_has(tiny_artifact, name, kernels, capfd):
    model = load(tiny_artifact.parent / name, kernels)
    with pytest.raises(CladaError, match=r"^ONNX Runtime [\d.]+ failed: Gather node '\S*': .*idx=99999") as caught:
        read_tokens(model, [1, 99_999, 3])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    read_tokens(model, [1, 2, 3])


@pytest.mark.fault("native", "inputs of shapes that a graph does not take", now="one line")
def test_an_input_of_the_wrong_rank(tiny_artifact, capfd):
    model = load(tiny_artifact, "bodies")
    model.neurons[0] += 1
    with pytest.raises(CladaError, match=r"^ONNX Runtime [\d.]+ failed: .*pool.0"):
        read_tokens(model, [1, 2, 3])
    assert capfd.readouterr() == ("", "")


@pytest.mark.fault("files", "a graph that ONNX Runtime cannot load", now="one line, and no other")
@KERNELS
def test_a_graph_that_does_not_load_is_one_line(tiny_artifact, tmp_path, kernels, capfd):
    model = onnx.load(tiny_artifact, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOp"
    shutil.copy(tiny_artifact.with_name(f"{tiny_artifact.name}.data"), tmp_path)
    path = tmp_path / tiny_artifact.name
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CladaError, match=r"^ONNX Runtime [\d.]+ cannot load .*model.onnx: .*NoSuchOp") as caught:
        load(path, kernels)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : it is so\nand so on", "it is so"),
        (
            "Error in execution: Non-zero status code returned while running Op node. Name:'/a' Status Message: Op: no",
            "Op node '/a': no",
        ),
        ("Non-zero status code returned while running Op node. Name:'' Status Message: bad", "Op node: bad"),
        ("", "RuntimeError"),
    ],
)
def test_the_reason_is_what_differs(said, reason):
    assert reason_of(RuntimeError(said)) == reason


def test_every_error_of_onnxruntime_is_known():
    """None has a base that others share."""
    states = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    kinds = [kind for kind in states if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind in ONNXRUNTIME_ERRORS
        with pytest.raises(CladaError, match=r"ONNX Runtime [\d.]+ failed: why"), one_line_errors():
            raise kind("why")


def test_memory_that_is_full_is_said():
    with pytest.raises(CladaError, match=r"^the memory is full: take fewer or shorter texts"), one_line_errors():
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([1 << 44], np.float64, "cpu", 0)


@pytest.mark.fault("command line", "threads beyond any machine's", now="refused in one line")
@pytest.mark.parametrize("threads", [-1, MOST_THREADS + 1, 3000, 2**31, 2**64])
def test_threads_have_bounds(threads):
    with pytest.raises(CladaError, match=f"threads is {threads}; it must be 0 .*, or from 1 to {MOST_THREADS}"):
        Execution(threads=threads)


@pytest.mark.fault(
    "installation", "a system without a C library of the process, as Windows", now="nothing is asked of it"
)
def test_no_library_of_the_process_is_asked_for_where_there_is_none(monkeypatch):
    def refuse(name: str | None) -> None:
        raise TypeError(f"LoadLibrary() argument 1 must be str, not {name}")

    monkeypatch.setattr(backend.ctypes, "CDLL", refuse)
    monkeypatch.setattr(sys, "platform", "win32")
    backend._give_back_memory()


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "libclada_onnxruntime.so"), ("win32", "clada_onnxruntime.dll")]
)
def test_a_library_is_named_as_the_system_names_them(monkeypatch, platform, name):
    monkeypatch.setattr(sys, "platform", platform)
    assert file_name("clada_onnxruntime") == name


def test_a_session_never_goes_on_elsewhere_by_itself(tiny_artifact):
    """ONNX Runtime's Python would, after a failure of the device, and print that to standard output."""
    model = OnnxRuntimeModel(tiny_artifact, Execution(threads=1, kernels="bodies"))
    assert model._session._enable_fallback is False
