"""Whole models in the GPU suite, as far as no GPU is needed: on the CPU's memory, through the runtime's own backend.

What only a GPU can show, that ONNX Runtime captures these graphs and how fast they are, no test here shows.
"""

import ctypes
import dataclasses
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from clada.errors import CladaError
from clada.plugins.onnxruntime import library as libraries
from clada.plugins.onnxruntime import library_path, use_library
from gpu_suite import build as gpu_build
from gpu_suite import models, suite
from gpu_suite.build import missing, onnxruntime_headers
from gpu_suite.report import MODEL, targets
from gpu_suite.timing import IN_GRAPH, LAUNCHED, LeftOut, Timing
from tests.conftest import ROOT
from tests.gpu.conftest import needs_nvcc
from tests.gpu.test_gpu_suite import HOST_WITH_GRAPHS, SHAPE
from tests.support.own_process import written_here

FRACTIONS = (0.6, 0.4)
CONTEXT = 70


@dataclasses.dataclass(frozen=True)
class NoKernels:
    """Of the kernels a whole model's times need only the device."""

    device = HOST_WITH_GRAPHS


TIMING = Timing(NoKernels(), 1000, lambda: 1 << 30, fractions=(1.0, *FRACTIONS), rounds=2)


def bandwidth() -> float:
    return 1e9


def nothing_built(target: str) -> Path:
    pytest.fail(f"{target} was built")


@pytest.fixture(scope="module")
def files():
    with written_here(models), models.written_model(SHAPE, FRACTIONS) as written:
        yield written


@pytest.fixture(scope="module")
def results(files):
    return list(models.model_tables(TIMING, files, SHAPE, bandwidth, CONTEXT))


def test_every_phase_is_timed(results):
    phases = [IN_GRAPH, models.STEP_IN_GRAPH, LAUNCHED, models.STEP_LAUNCHED]
    assert [(table.what, table.phase, table.tokens, table.context) for table in results] == [
        (MODEL, phase, 1, CONTEXT) for phase in phases
    ]
    for table in results:
        assert [row.name for row in table.rows] == [
            "ORT dense float16",
            *(f"ours {share} float16" for share in ("dense", "60%", "40%")),
        ]


def test_a_graph_is_a_part_of_its_step(files):
    """The times of a step include the copies to the device and back; those of the graph every step and nothing else."""
    runner = models.Runner(files.dense.path, models.Execution(threads=1), fixed_shapes=True, counts=False)
    steps = models.Steps(runner, SHAPE, [np.zeros(SHAPE.neurons, np.float32)] * SHAPE.layers, CONTEXT)
    calls = []
    run = runner._session.run_with_iobinding
    runner._session.run_with_iobinding = lambda *given: (calls.append(given), time.sleep(0.01), run(*given))
    before = time.perf_counter()
    seconds, active = models._graph_seconds([runner])(steps.run)
    assert 0.08 < seconds < time.perf_counter() - before
    assert (len(calls), active) == (8, 1.0)


def test_shares_of_neurons_are_about_those_asked_for(results):
    for table in results:
        for row in table.rows:
            wanted = 1 if row.active_target is None else row.active_target
            assert row.active == pytest.approx(wanted, abs=0.12)


def test_bytes_are_those_of_the_weights_and_the_cache(results):
    """Of a layer three matrices and four of its attention, the logits' matrix, and keys and values of all before."""
    dense, ours_dense, _, sparse = results[0].rows
    width, kv = SHAPE.hidden, SHAPE.key_value_heads * (SHAPE.hidden // SHAPE.heads)
    ffn = SHAPE.layers * 3 * width * SHAPE.neurons
    attention = SHAPE.layers * (2 * width * width + 2 * width * kv)
    cache = SHAPE.layers * 2 * kv * (CONTEXT + 1)
    everything = 2 * (ffn + attention + SHAPE.vocabulary * width + cache)
    assert dense.bytes_read == everything
    assert ours_dense.bytes_read == pytest.approx(everything)
    assert sparse.bytes_read == pytest.approx(everything - 2 * ffn * 2 / 3 * (1 - sparse.active))


def test_target_is_taken_of_the_slowest_phase(results):
    whole = targets(results)[-1]
    assert whole.reached == min(table.rows[-1].ratio for table in results)


def test_ours_is_compared_with_dense(results, files):
    assert all(0 < table.rows[1].error < 0.01 for table in results)
    runner = models.Runner(files.ours.path, models.Execution(), fixed_shapes=True, counts=True)
    thresholds = [np.zeros(SHAPE.neurons, np.float32)] * SHAPE.layers
    steps = models.Steps(runner, SHAPE, thresholds, CONTEXT)
    first = steps.logits()
    assert steps.run() == 1.0
    assert not np.array_equal(steps.logits(), first)
    # The tokens come in turn, so that a second round ends as the first.
    after = steps.logits()
    steps.run()
    np.testing.assert_array_equal(steps.logits(), after)


def test_other_weights_are_found(tmp_path, files):
    """A dense graph that is not that of ours is no reference."""
    shutil.copytree(files.ours.path.parent, tmp_path / "model")
    data = tmp_path / "model" / "dense.onnx.data"
    data.write_bytes(data.read_bytes()[::-1])
    spoilt = dataclasses.replace(
        files, dense=dataclasses.replace(files.dense, path=tmp_path / "model" / files.dense.path.name)
    )
    (first, second) = models.model_tables(TIMING, spoilt, SHAPE, bandwidth, CONTEXT)
    assert isinstance(first, LeftOut)
    assert first.what == f"tiny, model, {IN_GRAPH}"
    assert "ours dense float16 does not compute what" in second.why


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    """Each package by the name that pip knows, and the headers."""
    monkeypatch.setattr("gpu_suite.build.find_spec", lambda name: None if "onnx" in name else name)
    monkeypatch.setenv("CLADA_ONNXRUNTIME_INCLUDE", str(tmp_path))
    report = suite.timed(suite.whole_models(tmp_path, nothing_built, TIMING, [SHAPE]))
    (left,) = report.left_out
    assert left.what == "model"
    assert "pip install onnxruntime-gpu onnx onnx-ir onnxscript; set CLADA_ONNXRUNTIME_INCLUDE to" in left.why
    assert f"left out: model: {left.why}" in capsys.readouterr().out
    (tmp_path / "build" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "build" / "onnxruntime" / "onnxruntime_cxx_api.h").touch()
    assert onnxruntime_headers(tmp_path) == tmp_path / "build" / "onnxruntime"
    assert "CLADA_ONNXRUNTIME_INCLUDE" not in missing(None)
    monkeypatch.undo()
    assert missing(tmp_path) == ""


def test_nothing_is_written_without_a_gpu(tmp_path, monkeypatch):
    """An ONNX Runtime, or a machine, that cannot use CUDA is found before a model is made."""
    monkeypatch.setattr(suite, "missing", lambda root: "")
    monkeypatch.setattr(models, "written_model", lambda *_: pytest.fail("a model was made"))
    monkeypatch.setattr("clada.runtime.models.ort_cuda_session.check_provider", lambda: None)
    kernels = NoKernels()
    object.__setattr__(kernels, "device", dataclasses.replace(HOST_WITH_GRAPHS, name="cuda"))
    monkeypatch.setattr("clada.runtime.models.ort_cuda_session.why_no_gpu", lambda: "none is here")
    timing = dataclasses.replace(TIMING, kernels=kernels)
    (left,) = suite.whole_models(tmp_path, nothing_built, timing, [SHAPE])
    assert left == LeftOut("model", "no CUDA device: none is here")


def test_a_library_of_another_place_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "_elsewhere", {})
    path = tmp_path / "library.so"
    use_library("cuda", path)
    with pytest.raises(CladaError, match="has no CUDA kernels"):
        library_path("cuda")
    path.touch()
    assert library_path("cuda") == path
    assert library_path("cpu") != path


@needs_nvcc
@pytest.mark.skipif(onnxruntime_headers(ROOT) is None, reason="ONNX Runtime's headers are not here")
def test_custom_ops_stand_on_the_kernels(checkout, monkeypatch, tmp_path):
    """They load without a driver, and a complaint of the compiler's is one line."""
    monkeypatch.setenv("CLADA_ONNXRUNTIME_INCLUDE", str(onnxruntime_headers(ROOT)))
    root = shutil.copytree(checkout, tmp_path / "checkout")
    build = gpu_build.built_here(root, "sm_90", tmp_path / "build")
    library = build(gpu_build.CUSTOM_OPS)
    assert ctypes.CDLL(str(library)).RegisterCustomOps
    (root / "plugins" / "onnxruntime" / "cuda" / "products.h").write_text("#error these are none\n")
    with pytest.raises(CladaError, match=r"ONNX Runtime's custom ops for sm_90: .*these are none") as failure:
        build(gpu_build.CUSTOM_OPS)
    assert "\n" not in str(failure.value)
