"""`make demo`: on the demo model's first layers, as tracing takes time by the layer, and on the model as it is."""

import re
import subprocess

import pytest

from tests.conftest import DEMO_MODEL, ROOT
from tests.support.checkpoints import keep_layers
from tests.support.exhaustive import few
from tests.support.project_copy import copy_project


@pytest.mark.parametrize("layers", few([1, 6], [1]))
def test_the_demo_agrees_with_pytorch_and_runs_beside_the_dense_model(tmp_path, layers):
    environment = copy_project(tmp_path / "clada")
    keep_layers(tmp_path / "clada" / DEMO_MODEL.relative_to(ROOT), layers)
    result = subprocess.run(
        ["make", "demo"], cwd=tmp_path / "clada", env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = re.search(r"agreement with PyTorch: (\d+) of (\d+) greedy tokens", result.stdout).groups()
    assert ours == theirs
    assert "tokens as the dense model's" in result.stdout
