"""Programs in scripts/ that no other test runs."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from clada.errors import CladaError
from clada.exporter.calibration.text import sample_file
from clada.exporter.calibration.to_file import calibrate
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from tests.conftest import DEMO_MODEL, HELDOUT, ROOT
from tests.support.checkpoints import write_checkpoint
from tests.support.exhaustive import exhaustive


def run_script(name: str, *args: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def chunks(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@exhaustive
def test_training_writes_a_checkpoint_and_the_sample_texts(tmp_path):
    """Two steps of a small one; the sample texts are those that ship, where Python is the release that they are of."""
    model, calibration, heldout = tmp_path / "model", tmp_path / "calibration.jsonl", tmp_path / "new" / "heldout.jsonl"
    options = ["--family", "opt", "--hidden", 64, "--neurons", 96, "--layers", 2, "--heads", 2]
    outputs = ["--output", model, "--calibration-output", calibration, "--heldout-output", heldout]
    out = run_script("train_demo_model.py", "--steps", 2, *options, *outputs)
    assert "held-out loss" in out
    assert (model / "model.safetensors").stat().st_size <= 12_000_000
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    expected = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert {name: config[name] for name in expected} == expected
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "2 steps of 16 x 512" in card
    assert "A OPTForCausalLM of " in card
    assert "family opt, steps 2, seed 0, hidden 64, " in card

    for path in (calibration, heldout):
        assert 150_000 < sum(map(len, chunks(path))) < 400_000
    assert not set(chunks(calibration)) & set(chunks(heldout))
    if f"CPython {platform.python_version()}," in (DEMO_MODEL / "README.md").read_text(encoding="utf-8"):
        assert calibration.read_bytes() == sample_file().read_bytes()
        assert heldout.read_bytes() == HELDOUT.read_bytes()

    # It is a model that can be made sparse.
    loaded, tokenizer = load_model(str(model), torch.float32)
    sparsify(loaded)
    assert torch.isfinite(loaded(**tokenizer("import os", return_tensors="pt")).logits).all()


@pytest.mark.parametrize(("family", "folder"), [("llama", "demo"), ("opt", "demo-opt")])
def test_the_models_that_ship_are_of_the_sizes_that_training_gives(family, folder):
    training = load_script("train_demo_model")
    path = ROOT / "models" / folder
    _, size = training.FAMILIES[family]
    model = training.build_model(family, size, AutoTokenizer.from_pretrained(path))
    shipped, _ = load_model(str(path), torch.float32)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in shipped.named_parameters()}


def test_the_text_to_evaluate_on_is_not_calibrated_on():
    """Of the files that ship."""
    assert len(chunks(HELDOUT)) > 50
    assert not set(chunks(HELDOUT)) & set(chunks(sample_file()))


def test_the_three_sets_of_files_are_disjoint_and_complete():
    training = load_script("train_demo_model")
    files = training.stdlib_files()
    sizes = {
        name: sum(training.split_of(path) == name for path in files) for name in ("train", "calibration", "heldout")
    }
    assert sum(sizes.values()) == len(files) > 500
    assert min(sizes.values()) > 0.005 * len(files)
    assert sizes["train"] > 0.9 * len(files)


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # its dataclasses look themselves up there
    spec.loader.exec_module(script)
    return script


def test_results_are_those_of_the_evaluation_as_it_is_now():
    """Every run that the script would make of the demo model is there, with its policy, its text and its sizes."""
    script = load_script("evaluate")
    for run in script.runs():
        result = json.loads((script.RESULTS / "demo" / run.file).read_text(encoding="utf-8"))
        assert result["subject"]["policy"]["parts"] == dataclasses.asdict(run.policy), run.file
        assert result["subject"]["policy"]["ffn_cost"] == run.cost
        assert result["data"]["sha256"] == hashlib.sha256(script.HELDOUT.read_bytes()).hexdigest()
        assert result["data"]["sequences"] == script.SETTINGS.sequences


def test_small_models_page_states_what_was_measured():
    """The tables are those that the results give, and the claims made of them hold."""
    made = run_script("results_table.py").strip()
    assert made in (ROOT / "docs" / "small-models.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results" / "demo"
    clada, cats, griffin = (
        json.loads((results / f"{name}-0.50.json").read_text(encoding="utf-8"))["metrics"]
        for name in ("clada", "cats", "griffin")
    )
    assert clada["perplexity_ratio"]["value"] < 1.01
    assert clada["kl"]["high"] < 0.75 * cats["kl"]["low"]
    assert clada["kl"]["high"] < 0.5 * griffin["kl"]["low"]
    assert abs(clada["read_fraction"]["value"] - 0.5) < 0.01


def test_input_rules_are_compared_at_equal_bytes(tmp_path):
    out = tmp_path / "tiny-code.json"
    source = write_checkpoint(tmp_path / "hf", "llama", num_hidden_layers=3)
    sizes = ["--calibration-tokens", 512, "--tokens", 256, "--prompt-tokens", 16, "--decode-tokens", 48]
    sizes += ["--search-tokens", 128, "--search-step", 0.05]
    text = run_script("compare_input_rules.py", source, "--bytes", 0.7, 0.4, *sizes, "--json", out)
    found = json.loads(out.read_text(encoding="utf-8"))
    rules, dense = found["rules"], found["dense"]
    # The feed-forward networks are less than half of it: the rest alone is more than 40%, and less than 70%.
    assert [rule["asked"] for rule in rules].count(0.7) == 11
    assert [rule["asked"] for rule in rules].count(0.4) == 7
    for name in ("price: ffn", "cats", "griffin", "clada"):
        assert f"{name} cannot read 40% of all weights: " in text
    for rule in rules:
        assert rule["rule"] in text
        assert sum(rule["read"]) / len(rule["read"]) == pytest.approx(rule["asked"], abs=0.05), rule["rule"]
        for column in ("divergence", "changed", "nll", "accuracy"):
            assert len(rule[column]) == len(dense[column]) == 4
    assert dense["divergence"] == [0.0] * 4
    perplexity = f"{math.exp(sum(dense['nll']) / 4):.3f}"
    assert f"perplexity {perplexity}" in text

    table = run_script("input_rules_table.py", "--results", tmp_path).splitlines()
    assert table[0] == "**Code**, 4 sequences:"
    assert [line.count("|") for line in table if line.startswith("|")] == [11] * (len(rules) + 2 * 3)
    assert sum(f"| dense | nothing | 100% | 0 | | 0% | {perplexity} |" in line for line in table) == 2
    for rule in rules:
        name, _, sparse = rule["rule"].partition(": ")
        cost = sum(rule["divergence"]) / 4
        (line,) = [
            one
            for one in table
            if one.startswith(f"| {name} | {sparse or 'ffn, by neurons'} |") and f" {cost:.4f} (" in one
        ]
        assert f"| {sum(rule['changed']) / 4:.1%} | {math.exp(sum(rule['nll']) / 4):.3f} |" in line


def test_completions_are_compared_with_the_dense_models(inputs_artifact, tmp_path):
    out = tmp_path / "completions.json"
    sizes = ["--prompts", 4, "--prompt-tokens", 20, "--tokens", 12, "--threads", 1]
    run_script("compare_completions.py", inputs_artifact, "--bytes", 1, 0.5, *sizes, "--json", out)
    dense, sparse = json.loads(out.read_text(encoding="utf-8"))["shares"]
    assert dense["same"] == dense["until"] == dense["alike"] == [1.0] * 4
    assert dense["read"] == pytest.approx(1)
    assert sparse["read"] < 0.7
    for same, until, alike in zip(sparse["same"], sparse["until"], sparse["alike"], strict=True):
        assert (same == 1) == (until == 1)
        assert 0 <= until <= 1
        assert 0 <= alike <= 1
    assert sum(sparse["same"]) < 4


def test_what_the_scale_follows_is_compared_at_equal_bytes(checkpoint, tmp_path):
    source, calibration, out = checkpoint("llama"), tmp_path / "c.safetensors", tmp_path / "load.json"
    calibrate(calibration, str(source), tokens=600, report=lambda _: None)
    sizes = ["--tokens", 256, "--prompt-tokens", 16, "--decode-tokens", 48, "--calibration-tokens", 600]
    text = run_script("compare_load.py", source, calibration, "--bytes", 0.6, *sizes, "--json", out)
    ways = json.loads(out.read_text(encoding="utf-8"))["ways"]
    assert [way["way"] for way in ways] == [
        "flat",
        "flat, each text alike",
        "load",
        "load of another token",
        "table of tokens",
        "load and anticipation",
    ]
    for way in ways:
        assert way["way"] in text
        assert way["read"] == pytest.approx(0.6, abs=0.1)
        assert len(way["divergence"]) == len(way["flat divergence"]) == 4
    # Flat costs what flat costs.
    assert ways[0]["divergence"] == pytest.approx(ways[0]["flat divergence"])
    assert ways[0]["changed"] == pytest.approx(ways[0]["flat changed"])
    # Nobody else's does: each is another decoding of the text.
    assert len({tuple(way["divergence"]) for way in ways}) == len(ways)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--bytes", 1.5], "a share of bytes is 1.5"), ([], "error: no model at {}: there is no such folder")],
)
def test_input_rules_that_cannot_be_compared(tmp_path, options, message):
    command = [sys.executable, ROOT / "scripts" / "compare_input_rules.py", tmp_path / "none", *options]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert message.format(tmp_path / "none") in result.stderr


def test_the_memory_of_a_command_is_measured():
    measuring = load_script("measure_memory")
    script = "import time; held = b'x' * {}; time.sleep(0.3)"
    small, large = (measuring.peak_of([sys.executable, "-c", script.format(size)]) for size in (1, 200_000_000))
    assert 0.18 < large.own - small.own < 0.25
    assert small.own < small.mapped_too < large.mapped_too
    with pytest.raises(CladaError, match="failed: it went wrong"):
        measuring.peak_of([sys.executable, "-c", "import sys; sys.exit('it went wrong')"])
