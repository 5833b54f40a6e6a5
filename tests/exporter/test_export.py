"""clada-export from the command line, and the files that it writes."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from clada.contract.files import file_hash
from clada.errors import CladaError
from clada.exporter import cli, verify
from clada.exporter.calibration.text import read_texts, sample_file
from clada.exporter.export import ExportConfig, export
from clada.exporter.graph import trace
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.patch import sparsify
from clada.ops import LOAD_SIGNAL
from clada.ops.record import evaluate
from clada.runtime import GenerationConfig, Session
from clada.runtime import cli as runtime_cli
from tests.exporter.test_trace import with_parts
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model, tiny_tokenizer
from tests.support.exhaustive import exhaustive, few

FILES = {"model.onnx", "model.onnx.data", "clada.json", "tokenizer.json", "tokenizer_config.json"}
FILES |= {"generation_config.json", "config.json", "model.onnxruntime.onnx", "pools.safetensors"}


def run_export(*args: object) -> int:
    return cli.main([str(arg) for arg in args])


# Each family in the type that its neighbor is not in, one in both: an export takes long.
IN_TYPES = [("llama", "float16"), *zip(FAMILIES, itertools.cycle(("float32", "float16")))]


@pytest.mark.parametrize(("family", "dtype"), few(IN_TYPES, [("llama", "float32"), ("opt", "float16")]))
def test_every_family_exports_and_runs(checkpoint, tmp_path, capsys, family, dtype):
    path = tmp_path / "new" / "folder" / "model.onnx"
    goal = ["--calibration-tokens", 600, "--target-sparsity", 0.5]
    code = run_export(path, "--model", checkpoint(family), "--dtype", dtype, *goal)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "FAILED" not in out
    assert {p.name for p in path.parent.iterdir()} == FILES

    manifest = json.loads((path.parent / "clada.json").read_text())
    assert manifest["model"] | {"parameters": 0} == {
        "family": family,
        "layers": LAYERS,
        "hidden_size": 48,
        "neurons": [NEURONS] * LAYERS,
        "vocabulary_size": VOCABULARY,
        "context_length": 128,
        "parameters": 0,
        "dtype": dtype,
        "opset": 20,
    }
    assert set(manifest["files"]) == FILES - {"clada.json"}
    assert all(file_hash(path.parent / name) == value for name, value in manifest["files"].items())
    assert all(check["required"] <= check["tolerance"] for check in manifest["verification"])
    # What was asked for is met, and not much exceeded.
    realised = np.mean([layer["realised"] for layer in manifest["calibration"]["layers"]])
    assert 0.5 <= realised < 0.505

    completion = Session(path).generate(["def f(x):", "import"], GenerationConfig(max_new_tokens=5))
    assert [len(c.stats) for c in completion] == [5, 5]
    alone = Session(path).generate("def f(x):", GenerationConfig(max_new_tokens=5))[0]
    # In half precision rounding may drop a neuron on one graph that it keeps on the other.
    assert alone.tokens == completion[0].tokens or dtype == "float16"
    assert batch_dependence(Session(path), ["def f(x):", "import"]) < {"float32": 1e-5, "float16": 2e-2}[dtype]

    assert runtime_cli.main(["verify", str(path), "--model", str(checkpoint(family))]) == 0
    assert runtime_cli.main(["inspect", str(path)]) == 0
    assert f"{family}," in capsys.readouterr().out


def batch_dependence(session: Session, prompts: list[str]) -> float:
    """The most that logits differ between a text alone and in a batch, in prefill and decode, of their range."""
    ids = [session.encode(prompt) for prompt in prompts]
    together, alone = session.prefill(ids), [session.prefill([one]) for one in ids]
    differences = []
    for token in range(30, 36):
        for row, one in enumerate(alone):
            logits = one.logits[0].astype(np.float32)
            differences.append(np.abs(together.logits[row] - logits).max() / np.ptp(logits))
            session.decode(one, [token])
        session.decode(together, [token] * len(ids))
    return float(max(differences))


# What each policy's graph holds beside thresholds and the load's map, and whether it has pools.
HOLDS = {
    "clada": ({"compensation"}, True),
    "dense": (set(), False),
    "cats": (set(), False),
    "griffin": (set(), True),
    "sats": ({"compensation", "token_scale"}, True),
}
OPTIONS = {"clada": ["--no-anticipation", "--ffn-cost", 0.6], "cats": ["--ffn-cost", 0.6], "sats": ["--ffn-cost", 0.55]}


@pytest.mark.parametrize("name", few(HOLDS, ["sats"]))
def test_every_policy_exports_and_verifies(checkpoint, tmp_path, capsys, name):
    path, options = tmp_path / "model.onnx", OPTIONS.get(name, [])
    args = [path, "--model", checkpoint("llama"), "--calibration-tokens", 600, "--policy", name, *options]
    assert run_export(*args) == 0, capsys.readouterr().err
    parts, has_pools = HOLDS[name]
    assert {p.name for p in tmp_path.iterdir()} == FILES - (set() if has_pools else {"pools.safetensors"})
    manifest = json.loads((tmp_path / "clada.json").read_text())
    assert ("pool" in manifest) == ("pools.safetensors" in manifest["files"]) == has_pools
    names = {tensor.name.partition(".")[0] for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    assert names & {"compensation", "anticipation", "token_scale"} == parts

    policy, calibration = manifest["policy"], manifest["calibration"]
    assert policy["name"] == name
    realised = np.mean([layer["realised"] for layer in calibration["layers"]])
    if name == "dense":
        assert (realised, calibration["ffn_cost"], calibration["divergence_nats"]) == pytest.approx((0, 1, 0), abs=1e-6)
    elif "--ffn-cost" in options:
        assert "target_sparsity" not in policy
        assert policy["ffn_cost"] - 0.01 < calibration["ffn_cost"] <= policy["ffn_cost"] == options[-1]
    else:
        assert policy["target_sparsity"] == 0.5 <= realised < 0.51
    # The probe that was not asked for was not even tried.
    assert policy["parts"]["anticipation"] is False
    assert calibration["anticipation"] is None
    assert "anticipation" not in calibration["gains"]

    sizes = manifest["pool"]["sizes"] if has_pools else [NEURONS] * LAYERS
    for token in Session(path).generate("def f(x):", GenerationConfig(max_new_tokens=8))[0].stats:
        assert token.load >= calibration["reanalysis_load"] or list(token.pool) == sizes
        assert name != "dense" or token.active_fraction == 1
    assert runtime_cli.main(["verify", str(path), "--model", str(checkpoint("llama"))]) == 0
    assert runtime_cli.main(["inspect", str(path)]) == 0
    assert f"policy: {name}, " in capsys.readouterr().out


def test_manifest_tells_what_was_calibrated(tiny_artifact):
    """Policy, goal and outcome, and pools that agree with their file."""
    manifest = json.loads(tiny_artifact.with_name("clada.json").read_text())
    assert manifest["policy"] == {
        "name": "clada",
        "target_sparsity": 0.5,
        "seed": 0,
        "parts": {
            "thresholds": "sensitivity",
            "allocation": True,
            "pool": "blended",
            "compensation": True,
            "scale": "load",
            "reanalysis": True,
            "anticipation": True,
        },
    }
    calibration, pool = manifest["calibration"], manifest["pool"]
    assert (calibration["data"], calibration["data_sha256"]) == ("calibration.jsonl", file_hash(sample_file()))
    # Rows of the model's context, a quarter of each read as a prompt.
    assert (calibration["tokens"], calibration["prompt_tokens"]) == (4 * 96, 32)
    assert set(calibration["gains"]) == {"load", "anticipation"}
    assert 0 < calibration["divergence_nats"] < 0.1
    assert 0.4 < calibration["agreement"] < 1
    knots = np.array(calibration["scale_knots"])
    assert (np.diff(knots) <= 0).all()
    assert knots[-1] > 0
    # The load matters in it, or what stands on this artifact would not see it left out.
    assert knots[0] > 1 > knots[-1]
    assert 0.5 < calibration["reanalysis_load"] <= 1
    # Not computed is at least what the pools shut out, and bytes are those of the pools and of what is computed.
    assert [layer["pool"] for layer in calibration["layers"]] == [size / NEURONS for size in pool["sizes"]]
    assert all(1 - layer["realised"] < layer["pool"] <= 1 for layer in calibration["layers"])
    read = np.mean([(layer["pool"] + 2 * (1 - layer["realised"])) / 3 for layer in calibration["layers"]])
    assert calibration["ffn_cost"] == pytest.approx(read, abs=0.01)
    assert pool["prior_tokens"] is None or pool["prior_tokens"] >= 0

    tensors = load_file(tiny_artifact.with_name("pools.safetensors"))
    assert set(tensors) == {f"{kind}.{n}" for kind in ("prior", "weight") for n in range(LAYERS)}
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (np.float32, (NEURONS,)), name
        # A prior is the mean of shares of one token; weights are relative to their mean.
        assert (tensor >= 0).all()
        assert tensor.sum() == pytest.approx(1 if name.startswith("prior") else NEURONS, rel=1e-3), name


@exhaustive
def test_all_logits_export_verifies_and_runs(checkpoint, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert run_export(path, "--model", checkpoint("llama"), "--calibration-tokens", 600, "--all-logits") == 0
    assert runtime_cli.main(["verify", str(path), "--model", str(checkpoint("llama"))]) == 0
    assert runtime_cli.main(["run", str(path), "--prompt", "def f(x):", "--max-new-tokens", "3"]) == 0


@exhaustive
def test_output_in_the_current_folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_export("model.onnx", "--model", checkpoint("opt"), "--calibration-tokens", 600) == 0
    assert {p.name for p in tmp_path.iterdir()} == FILES - {"pools.safetensors"}


def test_same_seed_same_artifact(tiny_artifact, checkpoint, tmp_path, traced_anew):
    """To the byte, though another process may have made the first."""
    export(
        tmp_path / "model.onnx", str(checkpoint("llama")), ExportConfig(HALF_OF_NEURONS, calibration_tokens=600), str
    )
    first, second = (
        json.loads((folder / "clada.json").read_text())["files"] for folder in (tiny_artifact.parent, tmp_path)
    )
    assert first == second


def test_existing_artifact_is_kept_without_overwrite(tiny_artifact, checkpoint, tmp_path, capsys):
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact.parent, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run_export(folder / "model.onnx", "--model", checkpoint("opt")) == 1
    assert "model.onnx exists; pass --overwrite" in capsys.readouterr().err
    assert run_export(folder / "other.onnx", "--model", checkpoint("opt")) == 1
    assert "exists; pass --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    (folder / "chat_template.jinja").write_text("left by another model")
    (folder / "notes.txt").write_text("the user's own")
    few = ["--calibration-tokens", 600]
    assert run_export(folder / "model.onnx", "--model", checkpoint("opt"), "--overwrite", *few) == 0
    assert json.loads((folder / "clada.json").read_text())["model"]["family"] == "opt"
    assert (folder / "notes.txt").exists()
    Session(folder / "model.onnx")


@exhaustive
def test_overwriting_removes_the_replaced_artifacts_files(tiny_artifact, checkpoint, tmp_path):
    """The pools too, where the new one has none."""
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact.parent, folder)
    options = ["--overwrite", "--calibration-tokens", 600, "--policy", "dense"]
    assert run_export(folder / "other.onnx", "--model", checkpoint("opt"), *options) == 0
    left = {name.replace("model", "other") for name in FILES - {"pools.safetensors"}}
    assert {p.name for p in folder.iterdir()} == left


def test_disagreement_fails_the_export_and_leaves_the_calibration_alone(checkpoint, tmp_path, capsys, monkeypatch):
    """At a tolerance that rounding cannot meet, the export says which one it would need."""
    monkeypatch.setattr(verify, "TOLERANCES", dict.fromkeys(verify.TOLERANCES, 1e-12))
    path = tmp_path / "new" / "model.onnx"
    assert run_export(path, "--model", checkpoint("llama"), "--bytes", 0.6, "--calibration-tokens", 600) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert err.strip().splitlines()[-1].startswith("error: ONNX Runtime and PyTorch disagree in")
    assert "it needs a tolerance of" in err
    assert [file.name for file in path.parent.iterdir()] == ["model.calibration.safetensors"]


def changed(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """A model with half of an initializer's values, at least one, multiplied."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[: max(1, values.size // 2)] *= factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return model


def assert_verify_notices(path, hf_model, calibrated, tokenizer, initializer, factor):
    """The graph as it is passes, and one with a changed initializer does not."""
    rows = verify.verification_rows(read_texts(sample_file()), tokenizer, VOCABULARY)
    verify.require_passed(verify.verify(path, hf_model, calibrated, rows))
    other = path.with_name("changed.onnx")
    onnx.save(changed(onnx.load(path), initializer, factor), other)
    with pytest.raises(CladaError, match="disagree"):
        verify.require_passed(verify.verify(other, hf_model, calibrated, rows))


@pytest.mark.parametrize(
    ("initializer", "factor"),
    [
        ("threshold.1", 3),
        ("compensation.1", 3),
        ("scale_knots", 3),
        ("model.model.layers.1.mlp.w_up", 3),
        ("entropy_knots", np.nan),
    ],
)
def test_verify_notices_a_changed_constant(tiny_artifact, checkpoint, tmp_path, initializer, factor):
    """A graph with constants other than the model's does not pass: neither weights nor calibrated values."""
    hf_model, tokenizer = load_model(str(checkpoint("llama")), torch.float32)
    sparsify(hf_model)
    calibrated = Calibrated.from_graph(tiny_artifact)
    shutil.copytree(tiny_artifact.parent, tmp_path / "artifact")
    path = tmp_path / "artifact" / "model.onnx"
    assert_verify_notices(path, hf_model, calibrated, tokenizer, initializer, factor)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The ONNX file of a tiny Llama with a probe and a table too, and the references for verification."""
    hf_model, tokenizer = random_model("llama"), tiny_tokenizer()
    sparsify(hf_model)
    calibrated = with_parts("everything")
    path = tmp_path_factory.mktemp("everything") / "model.onnx"
    trace.save(trace.trace(hf_model, calibrated), path)
    return path, hf_model, calibrated, tokenizer


@pytest.mark.parametrize("name", ["weight", "load_weight", "bias", "knots", "factors"])
def test_verify_notices_a_changed_probe(everything, name):
    assert_verify_notices(*everything, f"anticipation.1.{name}", 5)


def test_verify_notices_a_changed_table(everything):
    assert_verify_notices(*everything, "token_scale", 3)


def test_scale_follows_from_the_load_as_in_the_op():
    """Verification takes the scale from the exported graph's load; it must be the op's own map."""
    for case in LOAD_SIGNAL.cases():
        scale, load, *_ = evaluate(LOAD_SIGNAL, case)
        ours = verify.scale_of_load(load, torch.from_numpy(case.inputs["scale_knots"]))
        np.testing.assert_allclose(ours.numpy(), scale, rtol=1e-6)


def test_clada_verify_refuses_another_checkpoint(tiny_artifact, checkpoint, capsys):
    assert runtime_cli.main(["verify", str(tiny_artifact), "--model", str(checkpoint("opt"))]) == 1
    assert "has family llama, but" in capsys.readouterr().err


def test_interrupted_export_leaves_nothing(checkpoint, tmp_path):
    """Killed in the middle of calibration, with SIGINT as from a keyboard."""
    program = (
        "import os, signal\n"
        "from clada.exporter import cli, price_export\n"
        "price_export.calibrate_price = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n"
        f"raise SystemExit(cli.main([{str(tmp_path / 'x' / 'model.onnx')!r}, '--model', {str(checkpoint('llama'))!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_chat_template_is_kept_and_used(checkpoint, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint("llama"), folder)
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    path = tmp_path / "out" / "model.onnx"
    assert run_export(path, "--model", folder, "--calibration-tokens", 600) == 0
    messages = [{"role": "system", "content": " be brief "}, {"role": "user", "content": "hello"}]
    session = Session(path)
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
    assert session.encode_chat(messages) == list(expected["input_ids"])

    answers = iter(["hello", ""])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(answers))
    assert runtime_cli.main(["chat", str(path), "--max-new-tokens", "3", "--system", "be brief", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert "surprisal" in err
