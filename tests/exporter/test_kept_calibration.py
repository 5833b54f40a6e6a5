"""Calibration kept by an export that failed after it: enough to go on from."""

import dataclasses

import numpy as np
import onnx
import pytest

from clada.contract.artifact import open_artifact
from clada.errors import CladaError
from clada.exporter import export as exporting
from clada.exporter import neuron_export, price_export
from clada.exporter.calibration.calibrate import CalibrationConfig, calibrate
from clada.exporter.calibration.kept import kept_path
from clada.exporter.export import ExportConfig, export
from clada.exporter.quantization.kept_rounding import rounded_path
from clada.ops import graph_names
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import LAYERS, write_checkpoint

CONFIG = ExportConfig(HALF_OF_NEURONS, calibration_tokens=512, quantize="int4", dtype="float16")


def fail(*_, **__):
    raise CladaError("they disagree")


def failed_export(path, source, config, monkeypatch):
    """An export that fails in verification; returns its calibration and the tensors that belong to it."""
    found = []

    def recorded(*arguments):
        calibration = calibrate(*arguments)
        of = calibration.calibrated
        found.append((calibration, [*of.thresholds, *of.compensation, *of.anticipations[0].tensors()]))
        return calibration

    with monkeypatch.context() as patch:
        patch.setattr(neuron_export, "calibrate", recorded)
        patch.setattr(exporting, "require_passed", fail)
        with pytest.raises(CladaError, match=r"they disagree; the calibration is kept in \S*calibration\.safetensors"):
            export(path, source, config, report=lambda _: None)
    return found[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """A tiny checkpoint whose widths blocks of 32 divide, of weights for which a probe is fitted."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    return str(write_checkpoint(tmp_path_factory.mktemp("kept"), "llama", seed=5, **sizes))


@pytest.mark.fault("results", "verification fails after calibration", now="the calibration is kept, a rerun takes it")
def test_rerun_takes_the_calibration_of_a_failed_export(source, tmp_path, monkeypatch):
    path = tmp_path / "failed" / "model.onnx"
    calibration, tensors = failed_export(path, source, CONFIG, monkeypatch)
    assert [file.name for file in path.parent.iterdir()] == [kept_path(path).name]
    for part in ("calibrate", "quantize_model"):
        monkeypatch.setattr(neuron_export, part, fail)
    lines: list[str] = []
    taken = export(path, source, CONFIG, report=lines.append)
    assert any(str(kept_path(path)) in line for line in lines)
    assert not kept_path(path).exists()
    for field in ("agreement", "ffn_cost", "tokens", "prompt_tokens", "gains"):
        assert getattr(taken, field) == getattr(calibration, field), field
    assert (list(taken.layers), taken.divergence_nats) == (calibration.layers, calibration.divergence)
    pools = open_artifact(path).pool_policy()
    assert pools.sizes == calibration.pools.sizes
    np.testing.assert_array_equal(pools.prior, calibration.pools.prior)
    in_file = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    names = [*map(graph_names.threshold, range(LAYERS)), *map(graph_names.compensation, range(LAYERS))]
    probed = next(n for n in range(LAYERS) if graph_names.anticipation(n)[0] in in_file)
    for name, tensor in zip([*names, *graph_names.anticipation(probed)], tensors, strict=True):
        np.testing.assert_array_equal(in_file[name], tensor.numpy(), err_msg=name)


def test_calibration_for_something_else_is_not_taken(source, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    failed_export(path, source, CONFIG, monkeypatch)
    monkeypatch.setattr(neuron_export, "calibrate", fail)
    for change in ({"calibration": CalibrationConfig(target_sparsity=0.6)}, {"quantize": None}, {"seed": 1}):
        with pytest.raises(CladaError, match="they disagree"):
            export(path, source, dataclasses.replace(CONFIG, **change), report=lambda _: None)
    # Damaged, it is made anew as well.
    whole = kept_path(path).read_bytes()
    for damaged in (whole[:-100], whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]):
        kept_path(path).write_bytes(damaged)
        with pytest.raises(CladaError, match="they disagree"):
            export(path, source, CONFIG, report=lambda _: None)


@pytest.fixture
def rounding(source, tmp_path, monkeypatch):
    """An export by bytes that failed once weights were rounded by text, and another attempt at it."""
    config = ExportConfig(CalibrationConfig(bytes=0.6), calibration_tokens=512, quantize="int4", quantize_method="gptq")
    path = tmp_path / "rounding" / "model.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(price_export, "calibrate_price", fail)
        with pytest.raises(CladaError, match="they disagree"):
            export(path, source, config, report=lambda _: None)
    return path, config


@pytest.mark.fault("results", "calibration fails after weights were rounded", now="they are kept, a rerun takes them")
def test_rerun_takes_the_weights_that_were_rounded(rounding, source, tmp_path, monkeypatch):
    path, config = rounding
    assert [file.name for file in path.parent.iterdir()] == [rounded_path(path).name]
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(price_export, "quantize_products", fail)
        export(path, source, config, report=lines.append)
    assert any("an earlier run rounded" in line for line in lines)
    assert not rounded_path(path).exists()
    whole = tmp_path / "whole" / "model.onnx"
    export(whole, source, config, report=lambda _: None)
    assert whole.with_suffix(".onnx.data").read_bytes() == path.with_suffix(".onnx.data").read_bytes()


@pytest.mark.parametrize("change", ["damaged", "cut", "another method's"])
def test_other_rounded_weights_are_rounded_anew(rounding, source, monkeypatch, change):
    path, config = rounding
    kept = rounded_path(path)
    content = bytearray(kept.read_bytes())
    if change == "damaged":
        content[-1] ^= 1
    kept.write_bytes(content[:-9] if change == "cut" else content)
    if change == "another method's":
        config = dataclasses.replace(config, block_size=128, quantize="int8")
    monkeypatch.setattr(price_export, "quantize_products", fail)
    with pytest.raises(CladaError, match="they disagree"):
        export(path, source, config, report=lambda _: None)
