"""Artifacts that skip inputs where everything lasts on a device: stood in for by the CPU, and built by TensorRT."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from clada.contract.engine_record import IN_PLACE, read_record
from clada.errors import CladaError
from clada.ops import graph_names
from clada.runtime import Session
from clada.runtime.cli import main
from tests.runtime.test_device import CONFIG, PROMPTS, SAMPLED, assert_same, on_device
from tests.runtime.test_engine_session import on_host, stood_in, write_engine
from tests.support.checkpoints import LAYERS

__all__ = ["stood_in"]  # a fixture


@pytest.fixture
def artifact(inputs_artifact, tmp_path) -> Path:
    """A copy that a test may write beside."""
    return Path(shutil.copytree(inputs_artifact.parent, tmp_path / "artifact")) / "model.onnx"


def test_texts_come_out_as_on_the_host(artifact):
    host, device = Session(artifact, threads=1), on_device(artifact, fixed_shapes=True)
    assert_same(device.generate(PROMPTS[0], CONFIG), host.generate(PROMPTS[0], CONFIG))
    assert_same(device.generate(PROMPTS, SAMPLED), host.generate(PROMPTS, SAMPLED))


def test_effort_reaches_the_device_when_it_changes(artifact):
    host, device = Session(artifact, threads=1), on_device(artifact)
    found = []
    for session in (host, device):
        state = session.prefill([session.encode(prompt) for prompt in PROMPTS[:2]])
        stats = session.decode(state, [5, 6])
        state.effort = np.array([0, 1.5], np.float32)
        stats += session.decode(state, [5, 6])
        stats += session.decode(state.copy(), [7, 8])
        found.append((stats, state.logits.copy()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    dense, less = ([s.read_fraction for s in found[1][0][2 + text :: 2]] for text in range(2))
    assert dense == pytest.approx([1, 1])
    assert all(0.3 < read < 0.57 for read in less)  # the effort of 1 reads 0.6


def test_an_engine_comes_out_as_the_onnx_file(artifact, stood_in):
    engine, host = Session(write_engine(artifact)), on_host(artifact)
    assert_same(engine.generate(PROMPTS[0], SAMPLED), host.generate(PROMPTS[0], SAMPLED))
    assert_same(engine.generate(PROMPTS, CONFIG), host.generate(PROMPTS, CONFIG))
    assert len(stood_in) == 1
    with pytest.raises(CladaError, match="calibrated for"):
        Session(artifact.with_suffix(".engine"), bytes=0.1)
    dense = Session(artifact.with_suffix(".engine"), bytes=1)
    assert dense.generate(PROMPTS[0], CONFIG)[0].stats[0].read_fraction == pytest.approx(1, abs=1e-6)


def test_tensorrt_builds_it(artifact, capsys):
    pytest.importorskip("tensorrt_rtx")
    options = ["--runtime", "tensorrt-rtx", "--target", "sm_89", "--max-batch", "2"]
    assert main(["build", str(artifact), *options]) == 0, capsys.readouterr().err
    record = read_record(artifact.with_suffix(".engine"))
    shapes = record.profiles[0].shapes
    assert len(shapes) == 5 + 2 * LAYERS
    assert shapes[graph_names.EFFORT] == ((1,), (2,), (2,))
    assert record.kv_cache == IN_PLACE
