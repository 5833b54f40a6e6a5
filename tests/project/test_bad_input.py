"""User errors of every kind: one clear line, a non-zero exit, nothing written, no traceback."""

import copy
import functools
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForSequenceClassification

from clada.contract.artifact import in_place_name, open_artifact
from clada.contract.manifest import MANIFEST_NAME, parse_manifest
from clada.contract.pieces import piece_hashes
from clada.contract.sealed_json import sealed
from clada.errors import CladaError
from clada.exporter.cli import main as export_main
from clada.runtime.cli import main as clada_main
from tests.conftest import DEMO_MODEL
from tests.support.artifacts import SEEDS
from tests.support.checkpoints import random_model, tiny_tokenizer
from tests.support.manifests import edit_manifest, read_manifest, vouch_for

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def fails_with(capsys, main, args, message: str) -> None:
    capsys.readouterr()  # what a fixture wrote
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert code == 1, out
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0], lines[0]


def snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def make_missing(folder, _checkpoint):
    return folder / "nowhere", "there is no such folder"


def make_file(folder, _checkpoint):
    (folder / "file").write_text("x")
    return folder / "file", "is a file, and no GGUF; give a checkpoint's folder"


def make_empty_folder(folder, _checkpoint):
    (folder / "empty").mkdir()
    return folder / "empty", "holds no config.json"


def make_broken_config(folder, _checkpoint):
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"")
    return folder, "cannot read the configuration"


def make_other_family(folder, _checkpoint):
    BertForMaskedLM(BertConfig(**SMALL, intermediate_size=16)).save_pretrained(folder)
    return folder, "is not a causal language model: its architecture is BertForMaskedLM"


def make_classifier(folder, _checkpoint):
    LlamaForSequenceClassification(LlamaConfig(**SMALL, intermediate_size=16)).save_pretrained(folder)
    return folder, "is not a causal language model: its architecture is LlamaForSequenceClassification"


def make_pickle(folder, _checkpoint):
    model = random_model("llama", SEEDS["llama"])
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(folder)
    return folder, "holds only a pickle checkpoint"


def make_no_weights(folder, checkpoint):
    shutil.copy(checkpoint("llama") / "config.json", folder)
    return folder, "holds no *.safetensors file"


def make_truncated_weights(folder, checkpoint):
    shutil.copytree(checkpoint("llama"), folder, dirs_exist_ok=True)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    return folder, "cannot read the weights"


def make_incomplete_weights(folder, checkpoint):
    edit_config(folder, checkpoint, num_hidden_layers=5)
    return folder, "of the model's weights, such as model.layers.2"


def make_no_tokenizer(folder, checkpoint):
    shutil.copytree(checkpoint("llama"), folder, dirs_exist_ok=True)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder, "tokenizer"


def edit_config(folder, checkpoint, **changes):
    shutil.copytree(checkpoint("llama"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def make_other_width(folder, checkpoint):
    edit_config(folder, checkpoint, intermediate_size=80)
    return folder, "mlp.down_proj.weight: [48, 88] instead of [48, 80]"


def make_nonsense_config(folder, checkpoint):
    edit_config(folder, checkpoint, hidden_size="wide")
    return folder, "cannot read the configuration"


def make_broken_tokenizer(folder, checkpoint):
    shutil.copytree(checkpoint("llama"), folder, dirs_exist_ok=True)
    truncate(folder / "tokenizer.json")
    return folder, "cannot read the tokenizer"


def make_tiny_context(folder, checkpoint):
    edit_config(folder, checkpoint, max_position_embeddings=40)
    return folder, "the model's context is 40 tokens; at least 64 are needed"


def make_other_tokenizer(folder, checkpoint):
    shutil.copytree(checkpoint("llama"), folder, dirs_exist_ok=True)
    for path in DEMO_MODEL.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder, "the model's vocabulary has only 512: the tokenizer is another model's"


MAKERS = [value for name, value in list(globals().items()) if name.startswith("make_")]


@pytest.mark.parametrize("make", MAKERS, ids=[m.__name__.removeprefix("make_") for m in MAKERS])
def test_bad_model(make, checkpoint, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    source, message = make(tmp_path / "in", checkpoint)
    capsys.readouterr()
    before = snapshot(tmp_path)
    fails_with(capsys, export_main, [tmp_path / "out" / "model.onnx", "--model", source], message)
    assert snapshot(tmp_path) == before


def test_pickle_is_read_when_asked_for(checkpoint, tmp_path):
    source, _ = make_pickle(tmp_path, checkpoint)
    out = tmp_path / "out" / "model.onnx"
    args = [out, "--model", source, "--allow-pickle", "--target-sparsity", 0.5, "--calibration-tokens", 600]
    assert export_main([str(a) for a in args]) == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text: byte 3 is invalid"),
        ("a.jsonl", b'{"body": "x"}', 'line 1: expected an object with a "text" field'),
        ("a.txt", b"too short", "at least"),
        (None, b"", "cannot read the calibration data"),
    ],
)
def test_bad_calibration_data(checkpoint, tmp_path, capsys, name, content, message):
    data = tmp_path / (name or "missing.txt")
    if name:
        data.write_bytes(content)
    before = snapshot(tmp_path)
    args = [tmp_path / "out" / "model.onnx", "--model", checkpoint("llama"), "--calibration-data", data]
    fails_with(capsys, export_main, args, message)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-sparsity", "0"], "target sparsity is 0.0; it must lie between 0 and 1"),
        (["--target-sparsity", "1.2"], "target sparsity is 1.2; it must lie between 0 and 1"),
        (["--ffn-cost", "0"], "FFN cost is 0.0; it must lie between 0 and 1"),
        (["--ffn-cost", "1.5"], "FFN cost is 1.5; it must lie between 0 and 1"),
        (["--ffn-cost", "nan"], "FFN cost is nan; it must lie between 0 and 1"),
        (["--error-budget", "0"], "error budget is 0.0"),
        (["--opset", "5"], "opset 5 is not supported"),
        (["--calibration-tokens", "0"], "calibration_tokens is 0"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_bad_settings(checkpoint, tmp_path, capsys, options, message):
    fails_with(
        capsys, export_main, [tmp_path / "out" / "model.onnx", "--model", checkpoint("llama"), *options], message
    )
    assert not snapshot(tmp_path)


def test_a_goal_out_of_a_policys_reach(checkpoint, tmp_path, capsys):
    """CATS reads every gate: a third of the bytes."""
    options = ["--policy", "cats", "--ffn-cost", "0.2", "--calibration-tokens", "600"]
    args = [tmp_path / "out" / "model.onnx", "--model", checkpoint("llama"), *options]
    fails_with(capsys, export_main, args, "the ffn cost 0.2 cannot be reached by this policy: the nearest is 0.33")
    assert not snapshot(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-sparsity", "much"], "--target-sparsity: invalid float value: 'much'"),
        (["--dtype", "int3"], "invalid choice: 'int3'"),
        (["--policy", "magic"], "--policy: invalid choice: 'magic'"),
        (["--ffn-cost", "0.5", "--target-sparsity", "0.4"], "not allowed with argument --ffn-cost"),
        (["--allocation", "kl"], "unrecognized arguments: --allocation kl"),
    ],
)
def test_bad_usage_exits_with_2(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_info:
        export_main([str(tmp_path / "model.onnx"), "--model", "x", *options])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_no_model_exits_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        export_main([str(tmp_path / "model.onnx")])
    assert exit_info.value.code == 2
    assert "the following arguments are required: --model" in capsys.readouterr().err


def test_bad_output(checkpoint, tmp_path, capsys):
    model = checkpoint("llama")
    fails_with(capsys, export_main, [tmp_path / "model.bin", "--model", model], "must be the path of an .onnx file")
    (tmp_path / "file").write_text("x")
    args = [tmp_path / "file" / "model.onnx", "--model", model]
    fails_with(capsys, export_main, args, "cannot write to the output folder")
    # Not even root may create files there.
    fails_with(capsys, export_main, ["/proc/model.onnx", "--model", model], "cannot write to the output folder /proc")
    assert snapshot(tmp_path) == {tmp_path / "file"}


@pytest.fixture
def linked_artifact(tiny_artifact, tmp_path) -> Path:
    """The same of hard links, which is faster: a test may replace files, and must not write into them."""
    (tmp_path / "artifact").mkdir()
    for path in tiny_artifact.parent.iterdir():
        (tmp_path / "artifact" / path.name).hardlink_to(path)
    # What edits of the manifest by a file's own bytes may write into.
    manifest = tmp_path / "artifact" / MANIFEST_NAME
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(content)
    return tmp_path / "artifact" / "model.onnx"


@pytest.fixture
def artifact(tiny_artifact, tmp_path) -> Path:
    """A copy of the tiny artifact that a test may damage."""
    shutil.copytree(tiny_artifact.parent, tmp_path / "artifact")
    return tmp_path / "artifact" / "model.onnx"


def change(artifact: Path, *keys: str | int, to: Any) -> None:
    """Set the value at keys in the manifest, and update its hash."""

    def change_it(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    edit_manifest(artifact.parent, change_it)


def drop(artifact: Path, *keys: str) -> None:
    """Remove the value at keys in the manifest, and update its hash."""

    def drop_it(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    edit_manifest(artifact.parent, drop_it)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def list_pieces(artifact: Path, size: int = 1 << 20) -> Path:
    """Have the manifest list the data file by pieces, as it does for large ones; returns that file, of three."""
    data = artifact.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes().ljust(3 * size - 100, b"x"))
    vouch_for(data)
    change(artifact, "pieces", to={"bytes": size, "files": {data.name: piece_hashes(data, size)}})
    return data


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(2000))


def rewrite(artifact: Path, content: str | bytes) -> None:
    """Write a manifest that nobody vouches for."""
    artifact.with_name(MANIFEST_NAME).write_bytes(content if isinstance(content, bytes) else content.encode())


def raw(artifact: Path, old: str, new: str) -> None:
    """Change the text of a manifest, and have its hash fit."""
    path = artifact.with_name(MANIFEST_NAME)
    before = re.sub(r' "[0-9a-f]{64}"\n\}\n\Z', " ", path.read_text())
    assert old in before
    before = before.replace(old, new, 1)
    path.write_text(f'{before}"{hashlib.sha256(before.encode()).hexdigest()}"\n}}\n')


NOT_LISTED = "does not list {}, which the model needs"
DAMAGES = {
    "flipped bit in .data": (lambda a: flip_byte(a.with_name("model.onnx.data")), "model.onnx.data does not match its"),
    "truncated .data": (lambda a: truncate(a.with_name("model.onnx.data")), "model.onnx.data does not match its hash"),
    "flipped bit in a piece": (lambda a: flip_byte(list_pieces(a)), "model.onnx.data does not match its hash"),
    "truncated piece": (lambda a: truncate(list_pieces(a)), "model.onnx.data does not match its hash"),
    "a piece too many": (lambda a: append(list_pieces(a)), "model.onnx.data does not match its hash"),
    "missing .data": (lambda a: a.with_name("model.onnx.data").unlink(), "the artifact lacks"),
    "changed graph": (flip_byte, "model.onnx does not match its hash"),
    "changed tokenizer": (lambda a: truncate(a.with_name("tokenizer.json")), "tokenizer.json does not match its hash"),
    "no manifest": (
        lambda a: a.with_name(MANIFEST_NAME).unlink(),
        "has no clada.json beside it: it was not made by clada-export",
    ),
    "changed in-place graph": (
        lambda a: flip_byte(a.with_name("model.onnxruntime.onnx")),
        "model.onnxruntime.onnx does not match its hash",
    ),
    "missing in-place graph": (lambda a: a.with_name("model.onnxruntime.onnx").unlink(), "the artifact lacks"),
    "missing pools": (lambda a: a.with_name("pools.safetensors").unlink(), "the artifact lacks"),
    "flipped bit in pools": (
        lambda a: flip_byte(a.with_name("pools.safetensors")),
        "pools.safetensors does not match its hash",
    ),
    **{
        f"{name} that nobody vouches for": (lambda a, name=name: drop(a, "files", name), NOT_LISTED.format(name))
        for name in ("model.onnxruntime.onnx", "pools.safetensors", "model.onnx.data", "tokenizer.json")
    },
    "graph that nobody vouches for": (lambda a: drop(a, "files", "model.onnx"), "does not list model.onnx: that file"),
}


@pytest.mark.parametrize("command", [["run", "--prompt", "x"], ["inspect"]], ids=["run", "inspect"])
@pytest.mark.fault("files", "files damaged, missing, or not listed", now="refused in one line")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_artifact(artifact, capsys, damage, command):
    apply, message = DAMAGES[damage]
    apply(artifact)
    fails_with(capsys, clada_main, [command[0], artifact, *command[1:]], message)


WRONG = {
    "not JSON": (lambda a: truncate(a.with_name(MANIFEST_NAME)), "clada.json: it is not valid JSON"),
    "not UTF-8": (lambda a: rewrite(a, b'{"a": "\xff"}'), "it is not valid JSON"),
    "empty": (lambda a: rewrite(a, ""), "it is not valid JSON"),
    "a list": (lambda a: rewrite(a, "[1]"), "it holds no JSON object"),
    "of another kind": (lambda a: rewrite(a, "{}"), "was not made by clada: it has no format_version"),
    "of the release before": (
        lambda a: rewrite(a, json.dumps(read_manifest(a.parent) | {"format_version": 1})),
        "has format version 1, this release reads 2; it was made by an older release of clada: export the model again",
    ),
    "of the future": (
        lambda a: change(a, "format_version", to=9),
        "has format version 9, this release reads 2; use a matching release of clada",
    ),
    "of no version": (lambda a: change(a, "format_version", to="2"), "has format version '2'"),
    "of a version that is true": (lambda a: change(a, "format_version", to=True), "has format version True"),
    "without its hash": (
        lambda a: rewrite(a, json.dumps(read_manifest(a.parent), indent=2)),
        "does not match the hash that it ends in: it was damaged or changed",
    ),
    "with something after its end": (lambda a: append(a.with_name(MANIFEST_NAME)), "it is not valid JSON"),
    "with a newline more": (
        lambda a: rewrite(a, a.with_name(MANIFEST_NAME).read_text() + "\n"),
        "does not match the hash that it ends in",
    ),
    "written anew by a tool": (
        lambda a: rewrite(a, json.dumps(json.loads(a.with_name(MANIFEST_NAME).read_text()))),
        "does not match the hash that it ends in",
    ),
    "a number of 5,000 digits": (
        lambda a: raw(a, '"layers": 2', f'"layers": {"1" * 5000}'),
        "it holds a number of 5000 digits",
    ),
    "a number that is infinite": (lambda a: raw(a, '"opset": 20', '"opset": 1e999'), "it holds '1e999', which is too"),
    "NaN": (lambda a: raw(a, '"opset": 20', '"opset": NaN'), "it holds NaN, which is no number"),
    "nested 10,000 deep": (
        lambda a: raw(a, '"opset": 20', f'"opset": {"[" * 10000}{"]" * 10000}'),
        "it is nested too deeply",
    ),
    "nested 100 deep": (lambda a: raw(a, '"opset": 20', f'"opset": {"[" * 100}{"]" * 100}'), "model.opset is [[[[[["),
    "a key twice": (lambda a: raw(a, '"opset": 20', '"opset": 20, "opset": 21'), "the key 'opset' occurs twice"),
    "a key of the future": (lambda a: change(a, "extra", to=1), "the key 'extra' is not known"),
    "a section's key of the future": (lambda a: change(a, "model", "x", to=1), "the key 'x' of model is not known"),
    "a key that cannot be printed": (lambda a: change(a, "\x1b[2J", to=1), "cannot be printed"),
    "a text that cannot be printed": (
        lambda a: change(a, "policy", "name", to="a\nerror: b"),
        "policy.name is 'a\\nerror: b', which cannot be printed",
    ),
    "half a character": (lambda a: change(a, "policy", "name", to="\ud800"), "which cannot be printed"),
    "larger than any": (lambda a: rewrite(a, " " * ((1 << 26) + 1)), "and at most 67,108,864 are read"),
    **{
        f"no {section}": (lambda a, section=section: drop(a, section), f"the key '{section}' is missing")
        for section in ("model", "policy", "calibration", "ops", "verification", "tools", "files")
    },
    **{
        f"no {'.'.join(keys)}": (
            lambda a, keys=keys: drop(a, *keys),
            f"the key '{keys[-1]}' of {'.'.join(keys[:-1])} is missing",
        )
        for keys in [
            ("model", "neurons"),
            ("model", "context_length"),
            ("policy", "parts"),
            ("calibration", "reanalysis_load"),
            ("pool", "sizes"),
            ("pool", "prior_tokens"),
            ("in_place_cache", "onnxruntime"),
        ]
    },
    **{
        f"{'.'.join(map(str, keys))} = {str(value)[:30]}": (
            lambda a, keys=keys, value=value: change(a, *keys, to=value),
            message,
        )
        for keys, value, message in [
            (("model",), [], "model is [], and must be an object"),
            (("files",), [], "files is [], and must be an object"),
            (("ops",), 3, "ops is 3, and must be an object"),
            (("ops",), {}, "ops is [], and must name LoadSignal and one op that skips"),
            (("ops",), {"SparseMixer": 1}, "ops names 'SparseMixer' version 1, which this release of clada does not"),
            (("ops", "SparseGatedFFN"), 2, "ops names 'SparseGatedFFN' version 2"),
            (("ops", "SparseGatedFFN"), "1", "ops.SparseGatedFFN is '1', and must be a whole number"),
            (("ops",), {"LoadSignal": 1}, "must name LoadSignal and one op"),
            (("ops",), {"LoadSignal": 1, "QuantizedSparseGatedFFN": 1}, "quantization does not go with the ops it"),
            (("model", "layers"), 4, "neurons is of 2 layers, and layers is 4"),
            (("model", "layers"), True, "model.layers is True, and must be a whole number"),
            (("model", "layers"), 3.0, "model.layers is 3.0, and must be a whole number"),
            (("model", "neurons"), [], "model.neurons and inputs: one of them must be given"),
            (("model", "neurons"), "88", "model.neurons is '88', and must be a list"),
            (("model", "neurons"), [88, -88], "model.neurons[1] is -88, and must lie from 1 to"),
            (("model", "neurons"), [88, 80], "has the input pool.1 of sizes (None, 88), and its manifest tells of"),
            (("model", "vocabulary_size"), 513, "has the input past_logits of sizes (None, 512), and its manifest"),
            (("model", "context_length"), 0, "model.context_length is 0, and must lie from 1 to"),
            (("model", "context_length"), 10**30, "model.context_length is 1000"),
            (("model", "context_length"), None, "model.context_length is None, and must be a whole number"),
            (("model", "dtype"), "float8", "model.dtype is 'float8', and must be one of 'float32', 'float16'"),
            (("model", "dtype"), ["float32"], "model.dtype is ['float32'], and must be one of"),
            (("model", "family"), {}, "model.family is {}, and must be a text"),
            (("policy", "parts", "pool"), "all", "policy.parts.pool is 'all', and must be one of"),
            (("policy", "parts", "allocation"), 1, "policy.parts.allocation is 1, and must be true or false"),
            (("policy", "ffn_cost"), 0.5, "policy.target_sparsity, ffn_cost, error_budget, bytes: one of them must be"),
            (("policy", "target_sparsity"), 1.5, "policy.target_sparsity is 1.5, and must lie from"),
            (("calibration", "layers"), [], "calibration.layers has 0 layers, and model.neurons 2"),
            (("calibration", "layers", 0, "realised"), "all", "calibration.layers[0].realised is 'all', and must be a"),
            (("calibration", "scale_knots"), [], "calibration.scale_knots is [], and must be two or more that do not"),
            (("calibration", "scale_knots"), [0.5, 1.0], "scale_knots is [0.5, 1.0], and must be two or more that"),
            (("calibration", "scale_knots"), [-1, -2], "calibration.scale_knots[0] is -1.0, and must lie from 0"),
            (("calibration", "scale_knots"), [9.0, 8.0], "has scale_knots that are not those of its manifest"),
            (("calibration", "reanalysis_load"), -0.5, "calibration.reanalysis_load is -0.5, and must lie from 0 to 2"),
            (("calibration", "reanalysis_load"), 0.125, "reanalysis_load"),
            (("calibration", "anticipation"), {"layer": 2, "factors": [], "r2": None}, "there are 2 layers"),
            (("calibration", "gains"), {"load": "much"}, "calibration.gains.load is 'much', and must be a number"),
            (("verification",), [1], "verification[0] is 1, and must be an object"),
            (("tools",), {"clada": 1}, "tools.clada is 1, and must be a text"),
            (("files", "tokenizer.json"), "", "files.tokenizer.json is '', and must be a SHA-256 in hex"),
            (("files", "tokenizer.json"), "A" * 64, "and must be a SHA-256 in hex"),
            (("files",), {}, "does not list model.onnx: that file was not made by clada-export"),
            (("files", "../x"), "0" * 64, "files names '../x', which is not in the artifact's own folder"),
            (("files", "..\\x"), "0" * 64, "which is not in the artifact's own folder"),
            (("files", "/etc/passwd"), "0" * 64, "files names '/etc/passwd', which is not in the artifact's own"),
            (("files", ".."), "0" * 64, "files names '..', which is not in the artifact's own folder"),
            (("files", "x" * 300), "0" * 64, "which is not in the artifact's own folder"),
            (("files", "none.txt"), "0" * 64, "the artifact lacks"),
            (("pieces",), 7, "pieces is 7, and must be an object"),
            *(
                (("pieces",), {"bytes": size, "files": {}}, f"pieces.bytes is {size}, and must lie from 1.04858e+06")
                for size in (0, -1, 1, 1000, 2**40)
            ),
            (("pieces",), {"bytes": 2**80, "files": {}}, "pieces.bytes is 1208925819614629174706176, and must lie"),
            (("pieces",), {"bytes": 2**20, "files": {"x": []}}, "pieces.files names 'x', which files does not"),
            (
                ("pieces",),
                {"bytes": 2**20, "files": {"model.onnx.data": []}},
                "model.onnx.data does not match its hash",
            ),
            (("pieces",), {"bytes": 2**20, "files": {"model.onnx.data": ["x"]}}, "and must be a SHA-256 in hex"),
            (("pool",), [40, 40, 40], "pool is [40, 40, 40], and must be an object"),
            (("pool", "sizes"), [40], "pool.sizes is [40], which does not fit layers of [88, 88] neurons"),
            (("pool", "sizes"), [40] * 4, "pool.sizes is [40, 40, 40, 40], which does not fit"),
            (("pool", "sizes"), [40, 89, 40], "pool.sizes is [40, 89, 40], which does not fit"),
            (("pool", "sizes"), [40, 0, 40], "pool.sizes[1] is 0, and must lie from 1"),
            (("pool", "sizes"), ["half"] * 3, "pool.sizes[0] is 'half', and must be a whole number"),
            (("pool", "prior_tokens"), "many", "pool.prior_tokens is 'many', and must be a number"),
            (("pool", "prior_tokens"), -1, "pool.prior_tokens is -1.0, and must lie from 0"),
            (("in_place_cache",), {"onnxruntime": "new", "fixed_shapes": True}, "onnxruntime is 'new', and must be a"),
            (("in_place_cache",), True, "in_place_cache is True, and must be an object"),
            (("quantization",), {"bits": 4}, "the key 'block_size' of quantization is missing"),
        ]
    },
}


@pytest.mark.fault("files", "manifests of wrong keys, types, ranges and nesting", now="one line that names the key")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_manifest(linked_artifact, capsys, wrong):
    apply, message = WRONG[wrong]
    apply(linked_artifact)
    fails_with(capsys, clada_main, ["inspect", linked_artifact], message)


@pytest.mark.fault("files", "one bit of the manifest flipped, each of them", now="refused in one line, nothing is read")
def test_no_bit_of_the_manifest_may_change(tiny_artifact, record_property):
    path = tiny_artifact.with_name(MANIFEST_NAME)
    content = path.read_bytes()
    assert parse_manifest(content, path) == open_artifact(tiny_artifact).manifest
    changed = bytearray(content)
    for at, bit in itertools.product(range(len(content)), range(8)):
        changed[at] ^= 1 << bit
        try:
            parse_manifest(bytes(changed), path)
        except CladaError as error:
            assert "\n" not in str(error)
        else:
            pytest.fail(f"byte {at}, bit {bit}")
        changed[at] ^= 1 << bit
    record_property("cases", 8 * len(content))


def test_a_manifest_cut_short_or_grown_is_refused(tiny_artifact):
    path = tiny_artifact.with_name(MANIFEST_NAME)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        with pytest.raises(CladaError):
            parse_manifest(content[:length], path)
        with pytest.raises(CladaError):
            parse_manifest(content[:length] + b" " + content[length:], path)


def test_pieces_stand_for_a_file(artifact):
    list_pieces(artifact)
    open_artifact(artifact)


@pytest.mark.fault("files", "a manifest of random values, its own hash right", now="read, or refused in one line")
def test_random_manifests(linked_artifact, record_property):
    """Every value of the manifest, in turn, replaced by each of many."""
    original = read_manifest(linked_artifact.parent)
    values = [None, True, -1, 0, 1, 2**63, 10**40, -0.0, 1e308, "", "x", "\u202e", [], [1], {}, {"x": None}, [[[[1]]]]]

    def places(content: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = content.items() if isinstance(content, dict) else enumerate(content[:2])
        for key, value in items:
            yield (*keys, key)
            if isinstance(value, (dict, list)):
                yield from places(value, (*keys, key))

    refused = cases = 0
    for keys in places(original):
        for value in values:
            content = copy.deepcopy(original)
            functools.reduce(lambda inner, key: inner[key], keys[:-1], content)[keys[-1]] = value
            cases += 1
            try:
                parse_manifest(sealed(content), linked_artifact)
            except CladaError as error:
                refused += 1
                assert "\n" not in str(error)
    record_property("cases", cases)
    assert 0.7 * cases < refused < cases


def edit_pools(artifact: Path, **changes) -> None:
    """Change tensors, None drops one, with a manifest that vouches for the file."""
    path = artifact.with_name("pools.safetensors")
    tensors = {**load_file(path), **changes}
    overwrite_pools(artifact, save({name: tensor for name, tensor in tensors.items() if tensor is not None}))


def overwrite_pools(artifact: Path, content: bytes) -> None:
    path = artifact.with_name("pools.safetensors")
    path.unlink()
    path.write_bytes(content)
    vouch_for(path)


WRONG_SIZE = "pools.safetensors is not of layers of [88, 88] neurons"
NOT_TOLD_OF = "pools.safetensors does not hold the pools that the manifest tells of"
OUT_OF_RANGE = "holds values that are not float32 from 0 to"
BAD_POOLS = {
    "no tensors at all": (lambda a: overwrite_pools(a, b"nonsense"), NOT_TOLD_OF),
    "truncated": (lambda a: overwrite_pools(a, a.with_name("pools.safetensors").read_bytes()[:-40]), NOT_TOLD_OF),
    "a layer short": (lambda a: edit_pools(a, **{"prior.1": None}), f"{NOT_TOLD_OF}: 'prior.1'"),
    "narrow prior": (lambda a: edit_pools(a, **{"prior.1": np.zeros(80, np.float32)}), WRONG_SIZE),
    "square weight": (lambda a: edit_pools(a, **{"weight.0": np.ones((88, 88), np.float32)}), WRONG_SIZE),
    "prior of NaN": (
        lambda a: edit_pools(a, **{"prior.1": np.full(88, np.nan, np.float32)}),
        f"prior.1 {OUT_OF_RANGE}",
    ),
    "infinite weight": (lambda a: edit_pools(a, **{"weight.1": np.full(88, np.inf, np.float32)}), OUT_OF_RANGE),
    "negative weight": (lambda a: edit_pools(a, **{"weight.1": np.full(88, -1, np.float32)}), OUT_OF_RANGE),
    "whole numbers": (lambda a: edit_pools(a, **{"weight.1": np.ones(88, np.int32)}), OUT_OF_RANGE),
}


@pytest.mark.fault("files", "pools that make no sense, their hash right", now="refused in one line when it is opened")
@pytest.mark.parametrize("damage", BAD_POOLS)
def test_bad_pools_that_the_manifest_vouches_for(linked_artifact, capsys, damage):
    apply, message = BAD_POOLS[damage]
    apply(linked_artifact)
    fails_with(capsys, clada_main, ["inspect", linked_artifact], message)


def test_external_data_outside_the_folder_is_refused(artifact, tmp_path, capsys):
    """Graphs that read their weights from elsewhere, with a manifest that vouches for them."""
    (tmp_path / "secret.data").write_bytes(artifact.with_name("model.onnx.data").read_bytes())
    for path in (artifact, artifact.with_name(in_place_name(artifact))):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../secret.data"
        path.write_bytes(model.SerializeToString())
        vouch_for(path)
    message = "model.onnx has tensors in '../secret.data', and its weights belong in model.onnx.data"
    fails_with(capsys, clada_main, ["run", artifact, "--prompt", "x"], message)


def test_foreign_onnx_file(tmp_path, capsys):
    (tmp_path / "other.onnx").write_bytes(b"whatever")
    fails_with(capsys, clada_main, ["inspect", tmp_path / "other.onnx"], "it was not made by clada-export")
    fails_with(capsys, clada_main, ["run", tmp_path / "none.onnx", "--prompt", "x"], "there is no file")


def test_foreign_onnx_file_beside_an_artifact(artifact, capsys):
    shutil.copy(artifact, artifact.with_name("other.onnx"))
    fails_with(capsys, clada_main, ["inspect", artifact.with_name("other.onnx")], "does not list other.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "word " * 500], "the model's context is 128"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "x", "--top-p", "2"], "top_p is 2"),
        (["--prompt", "x", "--threads", "-3"], "threads is -3"),
        (["--prompt", ""], "the prompt is empty"),
    ],
)
def test_bad_run_options(tiny_artifact, capsys, options, message):
    fails_with(capsys, clada_main, ["run", tiny_artifact, *options], message)


def test_chat_without_a_template(tiny_artifact, capsys):
    fails_with(capsys, clada_main, ["chat", tiny_artifact], "this model has no chat template")


def test_reader_that_leaves_early(tiny_artifact):
    script = Path(sys.executable).with_name("clada")
    # pipefail: the exit code is clada's own, and the pipe is closed before it can write.
    line = f"set -o pipefail; '{script}' run '{tiny_artifact}' --prompt x --max-new-tokens 60 | true"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert result.returncode in (0, 141)
    assert result.stderr == ""


def test_real_process_prints_one_line(tmp_path):
    """As a user sees it: the installed script, its exit code and its two streams."""
    script = Path(sys.executable).with_name("clada-export")
    args = [script, tmp_path / "model.onnx", "--model", tmp_path / "nowhere"]
    result = subprocess.run(args, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"error: no model at {tmp_path / 'nowhere'}: there is no such folder\n"
    assert not snapshot(tmp_path)
