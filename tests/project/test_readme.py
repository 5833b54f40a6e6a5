"""Every command and every snippet in README.md runs, in order, in a copy of the project."""

import re
import shlex
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.conftest import DEMO_MODEL, ROOT
from tests.support.checkpoints import keep_layers
from tests.support.project_copy import copy_project

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
# The one that runs this, and the one of test_demo.py.
ELSEWHERE = {"make test", "make demo"}
# clada's own programs: called here, where torch is loaded already, and given the words that a shell would give them.
PROGRAMS = {script.name: script for script in distribution("clada").entry_points.select(group="console_scripts")}


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


def test_every_command_runs(workplace, monkeypatch):
    folder, environment = workplace
    monkeypatch.chdir(folder)
    ran = 0
    for kind, text in commands():
        if text.strip() in ELSEWHERE:
            continue
        ran += 1
        if kind == "bash" and (words := shlex.split(text))[0] in PROGRAMS:
            assert PROGRAMS[words[0]].load()(words[1:]) == 0, text
            continue
        call = ["bash", "-c", text] if kind == "bash" else [folder / ".venv" / "bin" / "python", "-c", text]
        result = subprocess.run(
            call, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
    assert ran >= 6


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
