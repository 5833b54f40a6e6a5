"""Fixtures of several test files: checkpoints and artifacts, each made once."""

import functools
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch.onnx._internal.exporter._registration import onnxscript_apis

from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.export import ExportConfig, export
from clada.runtime import Session
from tests.conftest import DEMO_MODEL
from tests.support.checkpoints import write_checkpoint
from tests.support.traced_once import traced_once

# What is exported where a test is about neurons, or about neither way of skipping.
HALF_OF_NEURONS = CalibrationConfig(target_sparsity=0.5)
# A Llama of these weights is calibrated to thresholds that change with the load; of others, often to such that do not.
SEEDS = {"llama": 3}


def folder_of_run(factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a run share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _graphs_traced_once(tmp_path_factory):
    folder = folder_of_run(tmp_path_factory) / "traced"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced_once(torch.onnx.export, folder))
        # It reads the sources of all its ops anew for each graph.
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        # A cache of shapes, in which too little is found again in graphs of few layers.
        patch.setattr(torch._dynamo.config, "fake_tensor_cache_enabled", False)
        yield


@pytest.fixture
def traced_anew(tmp_path, monkeypatch):
    """Trace this test's exports in the test itself, whatever the run has traced before."""
    monkeypatch.setattr(torch.onnx, "export", traced_once(torch.onnx.export.__wrapped__, tmp_path))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function from a family to the folder of its tiny checkpoint."""
    made = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_checkpoint(tmp_path_factory.mktemp(f"hf-{family}"), family, SEEDS.get(family, 0))
        return made[family]

    return folder


def exported_once(factory: pytest.TempPathFactory, name: str, source: Path, config: ExportConfig) -> Path:
    """The ONNX file of a checkpoint, exported by whichever process of a run asks first; the others wait for it."""
    folder = folder_of_run(factory)
    path = folder / "exported" / name / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "exported" / f"{name}.lock"):
        if not path.exists():
            export(path, str(source), config)
    return path


@pytest.fixture(scope="session")
def tiny_artifact(checkpoint, tmp_path_factory) -> Path:
    """The ONNX file of a tiny Llama; tests that change its files copy the folder."""
    return exported_once(
        tmp_path_factory, "tiny", checkpoint("llama"), ExportConfig(HALF_OF_NEURONS, calibration_tokens=600)
    )


@pytest.fixture(scope="session")
def tiny_half_artifact(checkpoint, tmp_path_factory) -> Path:
    """The same in float16."""
    config = ExportConfig(HALF_OF_NEURONS, calibration_tokens=600, dtype="float16")
    return exported_once(tmp_path_factory, "tiny-half", checkpoint("llama"), config)


@pytest.fixture(scope="session")
def inputs_artifact(checkpoint, tmp_path_factory) -> Path:
    """The ONNX file of a tiny Llama that skips inputs of every matrix."""
    calibration = CalibrationConfig(bytes=0.6)
    return exported_once(
        tmp_path_factory, "inputs", checkpoint("llama"), ExportConfig(calibration, calibration_tokens=600)
    )


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory) -> Path:
    """The ONNX file of the demo model."""
    return exported_once(tmp_path_factory, "demo", DEMO_MODEL, ExportConfig(HALF_OF_NEURONS, calibration_tokens=1024))


@pytest.fixture(scope="session")
def demo_session(demo_artifact) -> Session:
    """The demo model, loaded."""
    return Session(demo_artifact, threads=1)
