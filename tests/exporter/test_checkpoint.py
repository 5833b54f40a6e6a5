"""Checkpoints that cannot be read, or must not be: one line each, before anything is calibrated."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clada.errors import CladaError
from clada.exporter.model.checkpoint import load_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A tiny checkpoint of the test's own."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "checkpoint"))


def set_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path) -> str:
    with pytest.raises(CladaError) as caught:
        load_model(str(folder), torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CONFIGURATIONS = [
    ({"num_hidden_layers": 0}, "num_hidden_layers 0; it must be at least 1"),
    ({"num_hidden_layers": -1}, "num_hidden_layers -1"),
    ({"num_hidden_layers": "x"}, "expected int, got str"),
    ({"vocab_size": 0}, "vocab_size 0"),
    ({"hidden_size": 0}, "hidden_size 0"),
    ({"num_attention_heads": 0}, "cannot read the configuration"),
    ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
    ({"num_key_value_heads": 3}, "weights of .* do not fit its config.json"),
    ({"hidden_act": "spiral"}, "activation 'spiral' is not known; known are: .*silu"),
    ({"hidden_act": None}, "expected str, got NoneType"),
    ({"rope_parameters": {"rope_type": "spiral"}}, "rope type 'spiral' is not known"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
    ({"rope_parameters": "x"}, "cannot read the configuration"),
    ({"dtype": "float3"}, "float3"),
    ({"max_position_embeddings": None}, "expected int, got NoneType"),
    ({"rms_norm_eps": "small"}, "expected float, got str"),
    ({"architectures": None}, "not a causal language model: its architecture is not named"),
    ({"architectures": ["LlamaModel"]}, "its architecture is LlamaModel"),
    ({"model_type": "spiral"}, "spiral"),
    ({"transformers_weights": "weights.bin"}, "weights.bin"),
]


@pytest.mark.fault("files", "a checkpoint's configuration that makes no sense", now="refused in one line")
@pytest.mark.parametrize(("changes", "reason"), CONFIGURATIONS, ids=[str(changes) for changes, _ in CONFIGURATIONS])
def test_configuration_that_makes_no_sense_is_one_line(copied, changes, reason):
    set_config(copied, **changes)
    assert re.search(reason, refused(copied))


@pytest.mark.fault("files", "a checkpoint whose weights are quantized", now="one line that says what to give instead")
@pytest.mark.parametrize("method", ["bitsandbytes", "mxfp4", "hqq", "spiral"])
def test_quantized_checkpoint_is_one_line(copied, method):
    set_config(copied, quantization_config={"quant_method": method, "bits": 4})
    assert f"are quantized ({method})" in refused(copied)


@pytest.mark.fault("files", "a JSON file of a checkpoint that is none", now="refused in one line")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_none_is_one_line(copied, record_property, name):
    contents = ["", "{", "[" * 5000, "1" * 5000, "[]", "null"]
    record_property("cases", len(contents))
    for content in contents:
        (copied / name).write_text(content)
        assert "Traceback" not in refused(copied)


def in_parts(folder: Path, index: object, part: str = "part.safetensors") -> None:
    """Cut a checkpoint into a part and a list of parts."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if part.endswith(".bin"):
        torch.save(tensors, folder / part)
    else:
        save_file(tensors, folder / part, {"format": "pt"})
    given = {"metadata": {}, "weight_map": dict.fromkeys(tensors, part)} if index is None else index
    (folder / INDEX).write_text(json.dumps(given))


def test_checkpoint_in_parts_is_read(copied):
    in_parts(copied, None)
    load_model(str(copied), torch.float32)


@pytest.mark.fault("files", "a pickle named by a checkpoint's list of parts", now="refused without --allow-pickle")
def test_pickle_that_the_list_of_parts_names_is_not_read(copied):
    in_parts(copied, None, "part.bin")
    save_file({"x": torch.zeros(1)}, copied / "other.safetensors")
    assert "names the pickle file 'part.bin'" in refused(copied)
    load_model(str(copied), torch.float32, allow_pickle=True)


@pytest.mark.fault("files", "a list of parts that makes no sense or leaves the folder", now="refused in one line")
@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "lists no weight files"),
        ([], "not a JSON object"),
        ({"weight_map": [1]}, "lists no weight files"),
        ({"weight_map": {"x": 3}}, "lists no weight files"),
        ({"weight_map": {"x": "../part.safetensors"}}, "not in the checkpoint's own folder"),
        ({"weight_map": {"x": "C:\\part.safetensors"}}, "not in the checkpoint's own folder"),
        ({"metadata": {}, "weight_map": {"x": "missing.safetensors"}}, "cannot read the weights"),
    ],
)
def test_list_of_parts_that_makes_no_sense_is_one_line(copied, index, reason):
    in_parts(copied, index)
    assert reason in refused(copied)


@pytest.mark.fault("files", "a checkpoint with an adapter beside it", now="one line that says how to give it")
def test_adapter_is_one_line(copied):
    (copied / "adapter_config.json").write_text("{}")
    assert f"the adapter by --adapter {copied}" in refused(copied)
