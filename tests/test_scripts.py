"""The programs in scripts/ that nothing else runs."""

import importlib.util
import json
import re
import subprocess
import sys

from tests.conftest import ROOT


def run_script(name: str, *args: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def table_row(text: str, sparsity: str) -> list[float]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {sparsity} |"))
    return [float(cell) for cell in re.findall(r"[\d.]+", line)]


def test_readme_table_is_what_the_program_prints():
    printed = table_row(run_script("sparsity_table.py", "--sparsities", 0.6), "60%")
    stated = table_row((ROOT / "README.md").read_text(encoding="utf-8"), "60%")
    assert len(printed) == len(stated) == 5
    for ours, theirs in zip(printed, stated, strict=True):
        assert abs(ours - theirs) <= 0.02 * theirs
    _, cats, clada, cats_unchanged, clada_unchanged = printed
    assert clada < cats
    assert clada_unchanged > cats_unchanged


def test_training_writes_a_checkpoint_and_the_sample_text(tmp_path):
    """Two steps of it; the sample text is the one that ships."""
    sample = tmp_path / "calibration.jsonl"
    out = run_script(
        "train_demo_model.py", "--steps", 2, "--output", tmp_path / "model", "--calibration-output", sample
    )
    assert "held-out loss" in out
    assert (tmp_path / "model" / "model.safetensors").stat().st_size <= 12_000_000
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "2 steps of 16 x 512" in card
    texts = [json.loads(line)["text"] for line in sample.read_text(encoding="utf-8").splitlines()]
    assert 150_000 < sum(map(len, texts)) < 400_000


def test_the_three_sets_of_files_are_disjoint_and_complete():
    spec = importlib.util.spec_from_file_location("train_demo_model", ROOT / "scripts" / "train_demo_model.py")
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    files = training.stdlib_files()
    sizes = {
        name: sum(training.split_of(path) == name for path in files) for name in ("train", "calibration", "heldout")
    }
    assert sum(sizes.values()) == len(files) > 500
    assert min(sizes.values()) > 0.005 * len(files)
    assert sizes["train"] > 0.9 * len(files)
