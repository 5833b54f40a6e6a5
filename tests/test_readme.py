"""Every command and every snippet in README.md runs, in order, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
# The one that runs this.
ELSEWHERE = {"make test"}


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


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A copy of the project as a user has it, with an environment of its own, into which clada is installed again.

    All else is found in the environment that the tests run in; installing there would take clada from under the tests
    that run beside this one.
    """
    folder = tmp_path_factory.mktemp("readme") / "clada"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "build", "out", ".*_cache", "__pycache__")
    )
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    ours = Path(sysconfig.get_path("purelib"))
    (venv / ours.relative_to(sys.prefix) / "tests.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    # As `make` leaves it, in that order: nothing is older than what it is made of.
    for stamp in ("tools", "export", "wheel", "package", "dependencies"):
        (venv / f"{stamp}.stamp").touch()
    return folder


def test_every_command_runs(workplace):
    programs = workplace / ".venv" / "bin"
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for kind, text in commands():
        if text.strip() in ELSEWHERE:
            continue
        call = ["bash", "-c", text] if kind == "bash" else [programs / "python", "-c", text]
        result = subprocess.run(
            call, cwd=workplace, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        ran += 1
    assert ran >= 6


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
