"""An export of a real model's vocabulary and depth; width alone is small, and weights are random."""

import functools
import itertools

import pytest

from clada.exporter import verify
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.policies import POLICIES
from clada.exporter.export import ExportConfig, export
from clada.exporter.verify import Execution
from clada.exporter.verify_command import verify_artifact
from tests.support.checkpoints import write_checkpoint
from tests.support.exhaustive import few
from tests.support.op_backends import INSTRUCTIONS

SIZES = {
    "vocab_size": 151_936,
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 32_768,
}

CALIBRATIONS = {"inputs": CalibrationConfig(), "neurons": CalibrationConfig(policy=POLICIES["cats"])}


@pytest.mark.fault(
    "results", "a vocabulary of 151,936 and 24 layers, on two instruction sets", now="exported and verified"
)
@pytest.mark.parametrize(("skipped", "layers"), few(itertools.product(CALIBRATIONS, (1, 24)), [("inputs", 1)]))
def test_model_of_real_sizes_is_exported_and_verified(tmp_path, monkeypatch, record_property, skipped, layers):
    """In int4, whose kernels are the least exact; the load signal is that of a float32 model."""
    source = str(write_checkpoint(tmp_path / "hf", "qwen2", **SIZES, num_hidden_layers=layers))
    config = ExportConfig(CALIBRATIONS[skipped], calibration_tokens=256, quantize="int4")
    export(tmp_path / "model.onnx", source, config, report=lambda _: None)
    others = [name for name in INSTRUCTIONS[1:] if name == "avx2"]
    record_property("cases", 1 + len(others))
    for instructions in others:
        monkeypatch.setattr(verify, "Execution", functools.partial(Execution, instructions=instructions))
        verify_artifact(tmp_path / "model.onnx", source)
