"""Every command and every snippet in README.md and docs/ runs, in the order of the site, in a copy of the project.

What needs a GPU, a network or minutes is in blocks of `text`.
"""

import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import DEMO_MODEL, ROOT
from tests.support.checkpoints import keep_layers
from tests.support.project_copy import copy_project

README = ROOT / "README.md"
DOCS = ROOT / "docs"
# The one that runs this, and the one of test_demo.py.
ELSEWHERE = {"make test", "make demo"}
# clada's own programs: called here, where torch is loaded already, and given the words that a shell would give them.
PROGRAMS = {script.name: script for script in distribution("clada").entry_points.select(group="console_scripts")}


def pages() -> list[Path]:
    """The README, and all pages of the site in its order."""

    def files(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        else:
            for inner in part.values() if isinstance(part, dict) else part:
                yield from files(inner)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return [README, *(DOCS / name for name in files(site["nav"]))]


def commands(page: Path) -> list[tuple[str, str]]:
    """Kind and text of each: shell lines one by one, Python snippets whole."""
    found = []
    for kind, text in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        lines = text.replace("\\\n", " ").strip().splitlines() if kind == "bash" else [text]
        found += [(kind, re.sub(r"\s+#.*$", "", line) if kind == "bash" else line) for line in lines if line.strip()]
    return found


def test_readme_names_the_two_commands():
    shell = [text.strip() for kind, text in commands(README) if kind == "bash"]
    assert {"make demo", "make test"} <= set(shell)


@pytest.fixture
def workplace(tmp_path) -> tuple[Path, dict[str, str]]:
    """A copy of the project, in which the demo model has one of its six layers, and the variables for its programs.

    Tracing takes time by the layer, and here many files are traced; what is compiled again is not optimized.
    """
    folder = tmp_path / "clada"
    environment = copy_project(folder)
    keep_layers(folder / DEMO_MODEL.relative_to(ROOT), 1)
    return folder, {**environment, "SKBUILD_CMAKE_BUILD_TYPE": "Debug", "CXXFLAGS": "-g0"}


def test_every_command_runs(workplace, monkeypatch):
    folder, environment = workplace
    monkeypatch.chdir(folder)
    ran = 0
    for kind, text in itertools.chain.from_iterable(map(commands, pages())):
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
    assert ran >= 20
