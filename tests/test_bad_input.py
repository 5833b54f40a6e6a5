"""What a user can get wrong: one clear line, a non-zero exit, nothing written, no traceback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForSequenceClassification

from clada.exporter.cli import main as export_main
from clada.plugins.errors import CladaError
from clada.runtime import Session
from clada.runtime.artefact import file_hash, in_place_name, open_artefact
from clada.runtime.cli import main as clada_main
from clada.runtime.pieces import piece_hashes
from tests.checkpoints import random_model, tiny_tokenizer
from tests.conftest import DEMO_MODEL

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
    return folder / "file", "is a file; give a checkpoint's folder"


def make_empty_folder(folder, _checkpoint):
    (folder / "empty").mkdir()
    return folder / "empty", "holds no config.json"


def make_broken_config(folder, _checkpoint):
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"")
    return folder, "cannot read the configuration"


def make_other_family(folder, _checkpoint):
    BertForMaskedLM(BertConfig(**SMALL, intermediate_size=16)).save_pretrained(folder)
    return folder, "model type 'bert' is not supported; known are: llama, mistral, qwen2, qwen3, gpt_neox, opt"


def make_classifier(folder, _checkpoint):
    LlamaForSequenceClassification(LlamaConfig(**SMALL, intermediate_size=16)).save_pretrained(folder)
    return folder, "is not a causal language model: its architecture is LlamaForSequenceClassification"


def make_pickle(folder, _checkpoint):
    model = random_model("llama")
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
    return folder, "of the model's weights, such as model.layers.3"


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
    args = [out, "--model", source, "--allow-pickle", "--calibration-tokens", 600]
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
def artefact(tiny_artefact, tmp_path) -> Path:
    """A copy of the tiny artefact that a test may damage."""
    shutil.copytree(tiny_artefact.parent, tmp_path / "artefact")
    return tmp_path / "artefact" / "model.onnx"


def edit_manifest(artefact: Path, **changes) -> None:
    path = artefact.parent / "clada.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def also_list(artefact: Path, name: str) -> None:
    files = json.loads(artefact.with_name("clada.json").read_text())["files"]
    edit_manifest(artefact, files={**files, name: ""})


def unlist(artefact: Path, name: str) -> None:
    files = json.loads(artefact.with_name("clada.json").read_text())["files"]
    edit_manifest(artefact, files={key: value for key, value in files.items() if key != name})


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def list_pieces(artefact: Path, size: int = 1000) -> Path:
    """Have the manifest list the data file by pieces, as it does for large ones; returns that file."""
    data = artefact.with_name("model.onnx.data")
    edit_manifest(artefact, pieces={"bytes": size, "files": {data.name: piece_hashes(data, size)}})
    return data


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(2000))


def without_manifest(artefact: Path) -> None:
    (artefact.parent / "clada.json").unlink()


DAMAGES = {
    "flipped bit in .data": (lambda a: flip_byte(a.with_name("model.onnx.data")), "model.onnx.data does not match its"),
    "truncated .data": (lambda a: truncate(a.with_name("model.onnx.data")), "model.onnx.data does not match its hash"),
    "flipped bit in a piece": (lambda a: flip_byte(list_pieces(a)), "model.onnx.data does not match its hash"),
    "truncated piece": (lambda a: truncate(list_pieces(a)), "model.onnx.data does not match its hash"),
    "a piece too many": (lambda a: append(list_pieces(a)), "model.onnx.data does not match its hash"),
    "pieces of no size": (
        lambda a: edit_manifest(a, pieces={"bytes": 0, "files": {}}),
        "pieces must give the bytes of",
    ),
    "missing .data": (lambda a: a.with_name("model.onnx.data").unlink(), "the artefact lacks"),
    "changed graph": (flip_byte, "model.onnx does not match its hash"),
    "changed tokenizer": (lambda a: truncate(a.with_name("tokenizer.json")), "tokenizer.json does not match its hash"),
    "no manifest": (without_manifest, "has no clada.json beside it: it was not made by clada-export"),
    "manifest not JSON": (lambda a: truncate(a.with_name("clada.json")), "clada.json is not valid JSON"),
    "manifest of another kind": (lambda a: a.with_name("clada.json").write_text("[1]"), "is not a CLADA manifest"),
    "format of the future": (lambda a: edit_manifest(a, format_version=9), "format version 9, this runtime reads 1"),
    "unknown op": (lambda a: edit_manifest(a, ops={"SparseMixer": 1}), "uses op SparseMixer version 1"),
    "op of the future": (lambda a: edit_manifest(a, ops={"SparseGatedFFN": 2}), "uses op SparseGatedFFN version 2"),
    "missing section": (lambda a: edit_manifest(a, files={}), "does not list model.onnx"),
    "sections of a wrong kind": (lambda a: edit_manifest(a, files=[], ops=3), "clada.json is incomplete: ops, files"),
    "changed in-place graph": (
        lambda a: flip_byte(a.with_name("model.onnxruntime.onnx")),
        "model.onnxruntime.onnx does not match its hash",
    ),
    "missing in-place graph": (lambda a: a.with_name("model.onnxruntime.onnx").unlink(), "the artefact lacks"),
    "in-place graph that nobody vouches for": (
        lambda a: unlist(a, "model.onnxruntime.onnx"),
        "does not list model.onnxruntime.onnx",
    ),
    "in-place graph for nobody knows what": (
        lambda a: edit_manifest(a, in_place_cache={"onnxruntime": "new"}),
        "in_place_cache must name the release of onnxruntime",
    ),
    "missing pools": (lambda a: a.with_name("pools.safetensors").unlink(), "the artefact lacks"),
    "flipped bit in pools": (
        lambda a: flip_byte(a.with_name("pools.safetensors")),
        "pools.safetensors does not match its hash",
    ),
    "pools that nobody vouches for": (lambda a: unlist(a, "pools.safetensors"), "does not list pools.safetensors"),
    "weights that nobody vouches for": (lambda a: unlist(a, "model.onnx.data"), "does not list model.onnx.data"),
    "tokenizer that nobody vouches for": (lambda a: unlist(a, "tokenizer.json"), "does not list tokenizer.json"),
    "path out of the folder": (lambda a: also_list(a, "../x"), "names the file '../x', which is not in"),
    "windows path": (lambda a: also_list(a, "..\\x"), "not in the artefact's own folder"),
    "absolute path": (lambda a: also_list(a, "/etc/passwd"), "names the file '/etc/passwd'"),
}


@pytest.mark.parametrize("command", [["run", "--prompt", "x"], ["inspect"]], ids=["run", "inspect"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_artefact(artefact, capsys, damage, command):
    apply, message = DAMAGES[damage]
    apply(artefact)
    fails_with(capsys, clada_main, [command[0], artefact, *command[1:]], message)


def test_pieces_stand_for_a_file(artefact):
    list_pieces(artefact)
    open_artefact(artefact)


def edit_pools(artefact: Path, **changes) -> None:
    """Change tensors, None drops one, with a manifest that vouches for the file."""
    path = artefact.with_name("pools.safetensors")
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    vouch_for(path)


def edit_pool_section(artefact: Path, **changes) -> None:
    section = json.loads(artefact.with_name("clada.json").read_text())["pool"]
    edit_manifest(artefact, pool={**section, **changes})


def overwrite_pools(artefact: Path, content: bytes) -> None:
    path = artefact.with_name("pools.safetensors")
    path.write_bytes(content)
    vouch_for(path)


def vouch_for(path: Path) -> None:
    """Put a changed file's hash into the manifest."""
    files = json.loads(path.with_name("clada.json").read_text())["files"]
    edit_manifest(path, files={**files, path.name: file_hash(path)})


WRONG_SIZE = "pools.safetensors is not of layers of [88, 88, 88] neurons"
NOT_TOLD_OF = "pools.safetensors does not hold the pools that the manifest tells of"
BAD_POOLS = {
    "no tensors at all": (lambda a: overwrite_pools(a, b"nonsense"), NOT_TOLD_OF),
    "truncated": (lambda a: overwrite_pools(a, a.with_name("pools.safetensors").read_bytes()[:-40]), NOT_TOLD_OF),
    "a layer short": (lambda a: edit_pools(a, **{"prior.2": None}), f"{NOT_TOLD_OF}: 'prior.2'"),
    "narrow prior": (lambda a: edit_pools(a, **{"prior.1": np.zeros(80, np.float32)}), WRONG_SIZE),
    "square weight": (lambda a: edit_pools(a, **{"weight.0": np.ones((88, 88), np.float32)}), WRONG_SIZE),
    "too few sizes": (lambda a: edit_pool_section(a, sizes=[40, 40]), WRONG_SIZE),
    "too many sizes": (lambda a: edit_pool_section(a, sizes=[40] * 4), WRONG_SIZE),
    "size beyond the layer": (lambda a: edit_pool_section(a, sizes=[40, 89, 40]), WRONG_SIZE),
    "empty pool": (lambda a: edit_pool_section(a, sizes=[40, 0, 40]), WRONG_SIZE),
    "size that is none": (lambda a: edit_pool_section(a, sizes=["half"] * 3), NOT_TOLD_OF),
    "prior that weighs nonsense": (lambda a: edit_pool_section(a, prior_tokens="many"), NOT_TOLD_OF),
    "section of a wrong kind": (lambda a: edit_manifest(a, pool=[40, 40, 40]), NOT_TOLD_OF),
    "section without sizes": (lambda a: edit_manifest(a, pool={"prior_tokens": 8}), f"{NOT_TOLD_OF}: 'sizes'"),
}


@pytest.mark.parametrize("damage", BAD_POOLS)
def test_bad_pools_that_the_manifest_vouches_for(artefact, capsys, damage):
    apply, message = BAD_POOLS[damage]
    apply(artefact)
    fails_with(capsys, clada_main, ["run", artefact, "--prompt", "x"], message)


def test_external_data_outside_the_folder_is_refused(artefact, tmp_path, capsys):
    """Graphs that read their weights from elsewhere, with a manifest that vouches for them."""
    (tmp_path / "secret.data").write_bytes(artefact.with_name("model.onnx.data").read_bytes())
    for path in (artefact, artefact.with_name(in_place_name(artefact))):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../secret.data"
        path.write_bytes(model.SerializeToString())
        vouch_for(path)
    elsewhere = "has weights in '../secret.data', which is not the name of a file beside it"
    fails_with(capsys, clada_main, ["run", artefact, "--prompt", "x"], elsewhere)
    with pytest.raises(CladaError, match=elsewhere):
        Session(artefact).generate(["one", "two"])


def test_foreign_onnx_file(tmp_path, capsys):
    (tmp_path / "other.onnx").write_bytes(b"whatever")
    fails_with(capsys, clada_main, ["inspect", tmp_path / "other.onnx"], "it was not made by clada-export")
    fails_with(capsys, clada_main, ["run", tmp_path / "none.onnx", "--prompt", "x"], "there is no file")


def test_foreign_onnx_file_beside_an_artefact(artefact, capsys):
    shutil.copy(artefact, artefact.with_name("other.onnx"))
    fails_with(capsys, clada_main, ["inspect", artefact.with_name("other.onnx")], "does not list other.onnx")


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
def test_bad_run_options(tiny_artefact, capsys, options, message):
    fails_with(capsys, clada_main, ["run", tiny_artefact, *options], message)


def test_chat_without_a_template(tiny_artefact, capsys):
    fails_with(capsys, clada_main, ["chat", tiny_artefact], "this model has no chat template")


def test_reader_that_leaves_early(tiny_artefact):
    script = Path(sys.executable).with_name("clada")
    # pipefail: the exit code is clada's own, and the pipe is closed before it can write.
    line = f"set -o pipefail; '{script}' run '{tiny_artefact}' --prompt x --max-new-tokens 60 | true"
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
