"""Artifacts whose weights are in bfloat16 and everything else in float32, from the command line to generated text."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from clada.contract.weight_bytes import weight_bytes
from clada.errors import CladaError
from clada.exporter import cli, price_export
from clada.ops import SPARSE_LINEAR
from clada.runtime import GenerationConfig, SamplingConfig, Session, loading
from clada.runtime import cli as runtime_cli
from clada.runtime.models.ort_cpu import BODIES
from tests.support.checkpoints import VOCABULARY, random_model, tiny_tokenizer
from tests.support.manifests import edit_manifest, read_manifest

FAMILY, SHARE, TOKENS = "qwen3", 0.6, 600
LAYERS, WIDTH = 1, 48
PROMPT, DECODED = 12, 24


def write(folder: Path, dtype: torch.dtype) -> Path:
    """The same model in a type; its output matrix is its embedding."""
    random_model(FAMILY, 3, num_hidden_layers=LAYERS).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def run_export(*args: object) -> int:
    return cli.main([*map(str, args), "--dtype", "bfloat16", "--calibration-tokens", str(TOKENS)])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf-narrow")
    return {name: write(folder / name, getattr(torch, name)) for name in ("bfloat16", "float32")}


@pytest.fixture(scope="module")
def artifact(checkpoints, tmp_path_factory):
    path = tmp_path_factory.mktemp("narrow") / "model.onnx"
    assert run_export(path, "--model", checkpoints["bfloat16"], "--bytes", SHARE) == 0
    return path


def weights(path: Path) -> dict[str, onnx_ir.TensorProtocol]:
    """Weights of a graph's products, and its embedding, by name."""
    model = onnx_ir.load(path)
    at = [spec.name for spec in SPARSE_LINEAR.inputs].index("w")
    given = [node.inputs[at] for node in model.graph if node.op_type == SPARSE_LINEAR.name]
    given += [node.inputs[0] for node in model.graph if node.op_type == "Gather" and node.inputs[0].is_initializer()]
    return {value.name: value.const_value for value in given if len(value.shape) == 2 and value.shape[1] > 1}


def test_the_file_is_half_as_large(artifact):
    for path in (artifact, artifact.with_name("model.onnxruntime.onnx")):
        found = weights(path)
        assert len(found) == 4 * LAYERS + 2
        assert {tensor.dtype for tensor in found.values()} == {onnx_ir.DataType.BFLOAT16}
        assert sum(tensor.shape[0] == VOCABULARY for tensor in found.values()) == 1
    manifest = read_manifest(artifact.parent)
    assert manifest["model"]["dtype"] == "float32"
    assert manifest["model"]["weights"] == "bfloat16"
    numbers = sum(p["inputs"] * p["outputs"] for p in manifest["inputs"]["products"]) + VOCABULARY * WIDTH
    size = artifact.with_name("model.onnx.data").stat().st_size
    assert 2 * numbers <= size < 2 * numbers + 20_000
    assert weight_bytes(Session(artifact).manifest, None) == 2 * (numbers - VOCABULARY * WIDTH)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kernels", ["native", "bodies"])
def test_logits_are_those_of_hugging_face_in_float32(artifact, checkpoints, kernels, batch):
    """Not those of its bfloat16, in which activations are rounded too."""
    reference = AutoModelForCausalLM.from_pretrained(checkpoints["bfloat16"], dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, VOCABULARY, (n + DECODED,), generator=generator).tolist() for n in (PROMPT, 5, 9)]
    texts = texts[:batch]
    with torch.no_grad():
        whole = [reference(input_ids=torch.tensor([text])).logits[0].numpy() for text in texts]
    session = Session(artifact, kernels=kernels, bytes=1)
    state = session.prefill([text[:-DECODED] for text in texts])
    for step in range(DECODED):
        for ours, text, logits in zip(state.logits, texts, whole, strict=True):
            theirs = logits[len(text) - DECODED - 1 + step]
            assert np.abs(ours - theirs).max() <= 5e-6 * np.ptp(theirs)
        session.decode(state, [text[step - DECODED] for text in texts])
    assert session.kernels.startswith(BODIES if kernels == "bodies" else "native")


def test_it_is_run_inspected_and_verified(artifact, checkpoints, capsys):
    config = GenerationConfig(max_new_tokens=8, sampling=SamplingConfig(temperature=0))
    expected = Session(artifact).generate("def f(x):", config)[0].tokens
    # Weights that are narrow already are held as they are.
    assert Session(artifact, weights="bfloat16").generate("def f(x):", config)[0].tokens == expected
    assert runtime_cli.main(["run", str(artifact), "--prompt", "def f(x):", "--bytes", "0.8", "--stats"]) == 0
    assert runtime_cli.main(["inspect", str(artifact)]) == 0
    assert "float32 with bfloat16 weights" in capsys.readouterr().out
    for checkpoint in checkpoints.values():
        assert runtime_cli.main(["verify", str(artifact), "--model", str(checkpoint)]) == 0


def test_it_is_timed_beside_the_dense_graph(artifact, capsys):
    """ONNX Runtime's has the same weights in float32, and the same logits."""
    args = ["bench", str(artifact), "--bytes", "1", "0.8", "--rounds", "1", "--threads", "1"]
    assert runtime_cli.main(args) == 0, capsys.readouterr().err
    names = [line[:20].rstrip() for line in capsys.readouterr().out.splitlines()]
    assert {"ORT dense float32", "ours dense bfloat16", "ours 80% bfloat16"} <= set(names)


def test_a_checkpoint_of_another_type_is_rounded(artifact, checkpoints, tmp_path, capsys):
    """The file has the weights that the checkpoint has in bfloat16; a calibration is of those that it has itself."""
    calibration = tmp_path / "tiny.safetensors"
    args = ["calibrate", calibration, "--model", checkpoints["float32"], "--calibration-tokens", TOKENS]
    assert runtime_cli.main([str(arg) for arg in [*args, "--bytes", SHARE]]) == 0
    path = tmp_path / "out" / "model.onnx"
    capsys.readouterr()
    args = [path, "--model", checkpoints["float32"], "--bytes", SHARE, "--calibration", calibration]
    assert run_export(*args) == 0, capsys.readouterr().err
    assert "rounded to bfloat16: weights moved by 0.1" in capsys.readouterr().out
    ours, theirs = weights(path), weights(artifact)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.tobytes() == theirs[name].tobytes()


WRONG = [
    (["--bytes", SHARE, "--quantize", "int8"], "weights cannot be in bfloat16 and quantized to int8 too"),
    (["--ffn-cost", 0.6], "dtype bfloat16 is for a goal of bytes, and the goal is ffn_cost"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_goals_and_formats_that_have_no_narrow_weights(checkpoints, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(price_export, "calibrate_price", lambda *_, **__: pytest.fail("calibrates"))
    assert run_export(tmp_path / "model.onnx", "--model", checkpoints["bfloat16"], *options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_has_no_kernels_for_it(artifact, capsys, monkeypatch):
    """Before the libraries of one are looked for, or weights are read."""
    message = "are in bfloat16, which only the kernels for CPUs read: export the model with --dtype float16"
    assert runtime_cli.main(["build", str(artifact), "--runtime", "tensorrt", "--target", "sm_90"]) == 1
    assert message in capsys.readouterr().err
    monkeypatch.setattr(loading, "check_cuda", lambda: None)
    with pytest.raises(CladaError, match=message):
        Session(artifact, device="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "float8"}, "model.weights"),
        ({"dtype": "float16"}, "model.weights is 'bfloat16', which is for float32"),
    ],
)
def test_manifests_that_make_no_sense(artifact, tmp_path, changes, message):
    folder = shutil.copytree(artifact.parent, tmp_path / "copy")
    edit_manifest(folder, lambda manifest: manifest["model"].update(changes))
    with pytest.raises(CladaError, match=message):
        Session(folder / artifact.name)


def test_a_plain_reader_of_onnx_takes_the_file(artifact):
    """ONNX's own checker, which knows nothing of ours but the functions in the file."""
    onnx.checker.check_model(str(artifact))
