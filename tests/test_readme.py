"""Every command and every snippet in README.md runs, in order, in a copy of the project."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.checkpoints import keep_layers
from tests.conftest import DEMO_MODEL, ROOT
from tests.project_copy import copy_project

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
# The one that runs this, and the one of test_demo.py.
ELSEWHERE = {"make test", "make demo"}


def commands() -> list[tuple[str, str]]:
    """Kind and text of each: shell lines one by one, Python snippets whole."""
    found = []
    for kind, text in BLOCKS:
        lines = text.replace("\\\n", " ").strip().splitlines() if kind == "bash" else [text]
        found += [(kind, re.sub(r"\s+#.*$", "", line) if kind == "bash" else line) for line in lines if line.strip()]
    return found


def test_readme_names_the_two_commands():
    shell = [text.strip() for kind, text in commands() if kind == "bash"]
    assert {"make demo", "make test"} <= set(shell)


@pytest.fixture
def workplace(tmp_path) -> tuple[Path, dict[str, str]]:
    """A copy of the project, in which the demo model has two of its six layers, and the variables for its programs.

    Tracing takes time by the layer, and here many files are traced; what is compiled again is not optimised.
    """
    folder = tmp_path / "clada"
    environment = copy_project(folder)
    keep_layers(folder / DEMO_MODEL.relative_to(ROOT), 2)
    return folder, {**environment, "SKBUILD_CMAKE_BUILD_TYPE": "Debug", "CXXFLAGS": "-g0"}


def test_every_command_runs(workplace):
    folder, environment = workplace
    ran = 0
    for kind, text in commands():
        if text.strip() in ELSEWHERE:
            continue
        call = ["bash", "-c", text] if kind == "bash" else [folder / ".venv" / "bin" / "python", "-c", text]
        result = subprocess.run(
            call, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        ran += 1
    assert ran >= 6


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
