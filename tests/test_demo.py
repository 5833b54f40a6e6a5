"""`make demo`, on the demo model as it is."""

import re
import subprocess

from tests.project_copy import copy_project


def test_the_demo_agrees_with_pytorch_and_runs_beside_the_dense_model(tmp_path):
    environment = copy_project(tmp_path / "clada")
    result = subprocess.run(
        ["make", "demo"], cwd=tmp_path / "clada", env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = re.search(r"agreement with PyTorch: (\d+) of (\d+) greedy tokens", result.stdout).groups()
    assert ours == theirs
    assert "tokens as the dense model's" in result.stdout
