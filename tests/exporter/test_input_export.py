"""Artifacts that skip inputs of every matrix, from the command line to generated text."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from clada.contract.artifact import artifact_files
from clada.errors import CladaError
from clada.exporter import cli, price_export
from clada.exporter import export as exporting
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.kept import kept_path
from clada.exporter.calibration.text import read_texts, sample_file, token_rows
from clada.exporter.export import ExportConfig, export
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.products import find_products
from clada.exporter.prepared import patch
from clada.exporter.quantization.packed import read_packed
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime import cli as runtime_cli
from tests.conftest import HELDOUT
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, tiny_tokenizer, write_checkpoint
from tests.support.exhaustive import few
from tests.support.manifests import edit_manifest, read_manifest

SHARE, TOKENS = 0.6, 600
GREEDY = SamplingConfig(temperature=0)
CONFIG = ExportConfig(CalibrationConfig(bytes=SHARE), calibration_tokens=TOKENS)


@pytest.fixture
def artifact(inputs_artifact):
    return inputs_artifact


def run_export(*args: object) -> int:
    return cli.main([str(arg) for arg in args])


# Each family in the type that its neighbor is not in; every one of OPT's linear layers has a bias.
IN_TYPES = list(zip(FAMILIES, itertools.cycle(("float32", "float16"))))


@pytest.mark.parametrize(("family", "dtype"), few(IN_TYPES, [("opt", "float16")]))
def test_every_family_exports_and_runs(checkpoint, tmp_path, capsys, family, dtype):
    path = tmp_path / "model.onnx"
    args = [path, "--model", checkpoint(family), "--dtype", dtype, "--calibration-tokens", TOKENS, "--bytes", SHARE]
    code = run_export(*args)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "FAILED" not in out
    manifest = read_manifest(path.parent)
    assert manifest["ops"] == {"LoadSignal": 1, "SparseLinear": 1}
    assert manifest["model"]["neurons"] == []
    assert manifest["model"]["layers"] == LAYERS
    assert manifest["policy"]["bytes"] == SHARE
    products = manifest["inputs"]["products"]
    assert len(products) == 4 * LAYERS + 1
    assert products[-1]["outputs"] == VOCABULARY
    weights = [p["inputs"] * p["outputs"] for p in products]
    assert np.average([p["kept"] for p in products], weights=weights) == pytest.approx(SHARE, abs=0.02)

    config = GenerationConfig(max_new_tokens=5, sampling=GREEDY)
    together = Session(path).generate(["def f(x):", "import"], config)
    alone = Session(path).generate("def f(x):", config)[0]
    assert alone.tokens == together[0].tokens or dtype == "float16"
    assert runtime_cli.main(["verify", str(path), "--model", str(checkpoint(family))]) == 0
    assert runtime_cli.main(["inspect", str(path)]) == 0
    assert products[0]["name"] in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 3])
def test_all_bytes_are_the_dense_model(artifact, checkpoint, batch):
    """Against Hugging Face's own greedy text."""
    session = Session(artifact, bytes=1)
    assert session.effort == 0
    model, _ = load_model(str(checkpoint("llama")), torch.float32)
    prompts = [session.encode(text) for text in ("def f(x):\n    return", "import os", "class A:")[:batch]]
    ours = session.generate(prompts, GenerationConfig(max_new_tokens=16, sampling=GREEDY))
    for prompt, completion in zip(prompts, ours, strict=True):
        with torch.no_grad():
            theirs = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :]
        assert completion.tokens == theirs.tolist()[: len(completion.tokens)]
        assert all(stats.read_fraction == pytest.approx(1, abs=1e-6) for stats in completion.stats)


def test_the_dial_reads_what_it_says(checkpoint, tmp_path):
    """On the text that it was measured on, decoded token by token by the runtime.

    Of a model whose load is about the same at every share: the dial is measured with the load of one of them.
    """
    artifact = tmp_path / "model.onnx"
    export(artifact, str(checkpoint("gpt_neox")), CONFIG, lambda _: None)
    texts = read_texts(sample_file())
    rows = token_rows(texts, tiny_tokenizer(), vocabulary=VOCABULARY, tokens=TOKENS, length=128, seed=0)
    read = {}
    for share in (0.8, SHARE, 0.45):
        session = Session(artifact, bytes=share)
        stats = []
        for row in rows.tolist():
            state = session.prefill([row[:32]])
            stats += [s for token in row[32:] for s in session.decode(state, [token])]
        read[share] = np.mean([s.read_fraction for s in stats])
        inputs = session.manifest.inputs
        # What the graph says was read is what follows from what each product kept.
        weights = np.array([p.outputs for p in inputs.products])
        for s in stats[::40]:
            total = weights @ np.array(inputs.widths)
            assert s.read_fraction == pytest.approx(weights @ np.array(s.active) / total, rel=1e-5)
            assert s.pool == inputs.widths
    for share, found in read.items():
        assert found == pytest.approx(share, abs=0.02)


def test_texts_of_a_batch_may_have_efforts_of_their_own(artifact):
    session = Session(artifact)
    prompts = [session.encode("def f(x):")] * 2
    state = session.prefill(prompts)
    state.effort = np.array([0, 1.5], np.float32)
    dense, sparse = session.decode(state, [7, 7])
    assert dense.read_fraction == pytest.approx(1, abs=1e-6)
    assert sparse.read_fraction < 0.7
    alone = Session(artifact, bytes=1).prefill(prompts[:1])
    Session(artifact, bytes=1).decode(alone, [7])
    np.testing.assert_allclose(state.logits[0], alone.logits[0], atol=1e-5 * np.ptp(alone.logits))


def test_a_copy_of_a_state_has_its_effort(artifact):
    session = Session(artifact, bytes=0.8)
    state = session.prefill([session.encode("import os")])
    copy = state.copy()
    assert copy.effort.tolist() == state.effort.tolist() == [np.float32(session.effort)]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.2, r"calibrated for 0\.\d+ to"),
        (1.1, "calibrated for"),
        (0.0, "calibrated for"),
        (float("nan"), "calibrated for"),
    ],
)
def test_shares_that_were_not_measured_are_refused(artifact, share, message):
    with pytest.raises(CladaError, match=message):
        Session(artifact, bytes=share)


def test_an_artifact_that_skips_neurons_has_no_dial(tiny_artifact):
    with pytest.raises(CladaError, match="export it with --bytes"):
        Session(tiny_artifact, bytes=0.7)


def test_an_artifact_is_evaluated(artifact, checkpoint, tmp_path):
    """The share read is of all weights, and as much as the dial gives for other text."""
    path = tmp_path / "eval.json"
    args = ["eval", artifact, "--reference", checkpoint("llama"), "--data", HELDOUT, "--json", path]
    args += ["--sequences", 2, "--prompt-tokens", 16, "--decode-tokens", 32, "--generation-tokens", 4]
    assert runtime_cli.main([str(arg) for arg in args]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    inputs = read_manifest(artifact.parent)["inputs"]
    weights = sum(p["inputs"] * p["outputs"] for p in inputs["products"])
    assert result["subject"]["neurons"] == [p["inputs"] for p in inputs["products"]]
    metrics = {name: figure["value"] for name, figure in result["metrics"].items()}
    assert metrics["read_fraction"] == pytest.approx(SHARE, abs=0.1)
    assert metrics["ffn_bytes"] == pytest.approx(4 * weights * metrics["read_fraction"])
    assert 0 < metrics["kl"] < 0.2


def test_run_takes_the_share(artifact, capsys):
    args = ["run", str(artifact), "--prompt", "import", "--greedy", "--max-new-tokens", "4", "--stats", "--bytes"]
    assert runtime_cli.main([*args, "1"]) == 0
    assert "100.0%" in capsys.readouterr().err
    assert runtime_cli.main([*args, "0.1"]) == 1
    assert capsys.readouterr().err.startswith("error: bytes is 0.1; the artifact was calibrated for")


WRONG = [
    (["--bytes", 1.5], "share of bytes is 1.5"),
    (["--bytes", 0], "share of bytes is 0"),
    (["--bytes", 0.6, "--policy", "cats"], "the policy is cats, and the goal bytes"),
    (["--ffn-cost", 0.6, "--policy", "price"], "the policy is price, and the goal ffn_cost"),
    (["--bytes", 0.6, "--quantize", "int4"], "a block of 32 does not divide its outputs"),
    (["--bytes", 0.6, "--calibration", "some.file", "--calibration-data", "a.txt"], "leave one of them out"),
    (["--ffn-cost", 0.6, "--calibration", "some.file"], "is for a goal of bytes"),
    (["--calibration", "missing.file"], "cannot read the calibration missing.file"),
    (["--bytes", 0.6, "--calibration", "some.file", "--no-anticipation"], "parts of it are left out: calibrate anew"),
    (["--bytes", 0.6, "--calibration", "missing.file"], "cannot read the calibration missing.file"),
    (["--bytes", 0.6, "--calibration", __file__], "is no calibration file"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_make_no_sense(checkpoint, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(price_export, "calibrate_price", lambda *_, **__: pytest.fail("calibrates"))
    source = checkpoint("llama")
    capsys.readouterr()
    assert run_export(tmp_path / "model.onnx", "--model", source, *options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_failed_verification_keeps_the_calibration(checkpoint, tmp_path, monkeypatch):
    path, source = tmp_path / "model.onnx", str(checkpoint("llama"))

    def fail(*_, **__):
        raise CladaError("they disagree")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "require_passed", fail)
        with pytest.raises(CladaError, match=r"they disagree; the calibration is kept in"):
            export(path, source, CONFIG, lambda _: None)
    assert [file.name for file in tmp_path.iterdir()] == [kept_path(path).name]
    monkeypatch.setattr(price_export, "calibrate_price", fail)
    lines: list[str] = []
    export(path, source, CONFIG, lines.append)
    assert any(str(kept_path(path)) in line for line in lines)
    assert {file.name for file in tmp_path.iterdir()} <= set(artifact_files(path))
    # Of another share, or another text, it is not taken.
    other = dataclasses.replace(CONFIG, seed=1, overwrite=True)
    with pytest.raises(CladaError, match="they disagree"):
        export(path, source, other, lambda _: None)


def set_at(manifest, keys, value):
    *path, last = keys
    for key in path:
        manifest = manifest[key]
    manifest[last] = value


BAD_MANIFESTS = [
    (("inputs", "products", 0, "inputs"), 47, "SparseLinear|threshold.0|products"),
    (("inputs", "products"), [], "products is empty"),
    (("inputs", "products", 1, "outputs"), 4096, "row_share"),
    (("inputs", "dial", 1, "effort"), 0.0, "must rise from 0"),
    (("inputs", "dial", 0, "effort"), 0.1, "must rise from 0"),
    (("inputs", "dial", 2, "bytes"), 0.99999, "must fall"),
    (("inputs", "dial", 1, "divergence_nats"), -1.0, "divergence_nats"),
    (("inputs", "price"), "a lot", "price"),
    (("model", "neurons"), [NEURONS] * LAYERS, "one of them must be given"),
    (("model", "layers"), 4, "layers"),
    (("ops",), {"LoadSignal": 1, "SparseGatedFFN": 1}, "inputs does not go with the ops"),
    (("calibration", "ffn_cost"), 0.5, "ffn_cost"),
]


@pytest.mark.parametrize(("keys", "value", "message"), BAD_MANIFESTS)
def test_manifests_that_make_no_sense(artifact, tmp_path, keys, value, message):
    folder = shutil.copytree(artifact.parent, tmp_path / "copy")
    edit_manifest(folder, lambda manifest: set_at(manifest, keys, value))
    with pytest.raises(CladaError, match=message):
        Session(folder / artifact.name).encode("x")


def test_what_verification_watches_is_not_part_of_the_artifact(artifact):
    assert not any("watched" in file.name for file in artifact.parent.iterdir())


def test_the_file_tells_what_is_calibrated(artifact):
    """A user who opens the file finds thresholds by their products' numbers, and the shares of their rows."""
    graph = onnx.load(artifact, load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    assert {f"threshold.{n}" for n in range(4 * LAYERS + 1)} | {"row_share", "scale_knots"} <= names
    assert "reanalysis_load" not in names
    assert {"effort"} < {value.name for value in graph.input}
    assert {"read", "active"} < {value.name for value in graph.output}


def test_find_products_is_what_the_manifest_lists(artifact, checkpoint):
    model, _ = load_model(str(checkpoint("llama")), torch.float32)
    found = [(p.name, p.inputs, p.outputs) for p in find_products(model)]
    inputs = json.loads((artifact.parent / "clada.json").read_text())["inputs"]
    assert found == [(p["name"], p["inputs"], p["outputs"]) for p in inputs["products"]]


@pytest.fixture(scope="module")
def quantizable(tmp_path_factory):
    """A tiny checkpoint whose products' outputs blocks of 32 divide."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96}
    return write_checkpoint(tmp_path_factory.mktemp("inputs"), "llama", **sizes)


METHODS = [("int4", "gptq"), ("int4", "rtn"), ("int8", "rtn"), ("int8", "gptq")]


@pytest.mark.parametrize(("quantize", "method"), few(METHODS, METHODS[:1]))
def test_quantized_products_skip_inputs_too(quantizable, tmp_path, capsys, quantize, method):
    """One calibration for two artifacts, one of them quantized; all bytes are the quantized dense model."""
    calibration = tmp_path / "tiny.safetensors"
    args = ["calibrate", calibration, "--model", quantizable, "--calibration-tokens", TOKENS, "--bytes", 0.55]
    assert runtime_cli.main([str(arg) for arg in args]) == 0, capsys.readouterr().err
    path = tmp_path / quantize / "model.onnx"
    args = [path, "--model", quantizable, "--calibration", calibration, "--bytes", 0.55, "--quantize", quantize]
    args += ["--quantize-method", method, "--calibration-tokens", TOKENS]
    assert run_export(*args) == 0, capsys.readouterr().err
    assert (f"rounding weights on {TOKENS // 128 * 128} tokens" in capsys.readouterr().out) == (method == "gptq")
    manifest = read_manifest(path.parent)
    assert manifest["ops"] == {"LoadSignal": 1, "QuantizedSparseLinear": 1}
    assert manifest["quantization"]["method"] == method
    assert manifest["quantization"]["linears"] == [p["name"] for p in manifest["inputs"]["products"]]
    assert runtime_cli.main(["verify", str(path), "--model", str(quantizable)]) == 0, capsys.readouterr().err
    size = (path.parent / "model.onnx.data").stat().st_size
    weights = sum(p["inputs"] * p["outputs"] for p in manifest["inputs"]["products"])
    bits = {"int4": 4, "int8": 8}[quantize]
    assert size > weights * bits / 8
    # Codes, float16 scales, the embedding in float16, and little else; not the weights in floating point as well.
    assert size < weights * (bits / 8 + 2 / 32) + 2 * VOCABULARY * 64 + 40_000

    model, _ = load_model(str(quantizable), torch.float32)
    packed = read_packed(path, [p["name"] for p in manifest["inputs"]["products"]])
    patch(model, packed, find_products(model))
    session = Session(path, bytes=1)
    ids = session.encode("def f(x):")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    found = session.prefill([ids]).logits[0]
    assert np.abs(found - expected).max() <= 2e-2 * np.ptp(expected)
    stats = Session(path).generate("def f(x):", GenerationConfig(max_new_tokens=5, sampling=GREEDY))[0].stats
    assert 0.35 < np.mean([s.read_fraction for s in stats]) < 0.75

    capsys.readouterr()
    assert runtime_cli.main(["build", str(path), "--runtime", "tensorrt-rtx", "--target", "sm_89"]) == 0
    assert f"; {len(manifest['quantization']['linears'])} quantized matrices stay packed" in capsys.readouterr().out


def test_weights_of_another_model_are_refused(quantizable, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    args = [path, "--model", quantizable, "--bytes", 0.6, "--quantize", "int8", "--calibration-tokens", TOKENS]
    assert run_export(*args) == 0
    other = write_checkpoint(
        tmp_path / "other",
        "llama",
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=96,
        initializer_range=0.3,
    )
    assert runtime_cli.main(["verify", str(path), "--model", str(other)]) == 1
    assert "was not quantized from the checkpoint's" in capsys.readouterr().err
