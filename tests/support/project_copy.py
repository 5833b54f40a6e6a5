"""Copy of the project as a user has it, with an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.conftest import ROOT

_LEFT_OUT = (".git", ".venv", "build", "out", ".*_cache", "__pycache__")


def copy_project(folder: Path) -> dict[str, str]:
    """Copy the project into a new folder, as `make` leaves it; returns the variables with which its programs are found.

    What its environment lacks is found in the one that the tests run in: installing clada there again would take it
    from under the tests that run beside this one.
    """
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    ours = Path(sysconfig.get_path("purelib"))
    (venv / ours.relative_to(sys.prefix) / "tests.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    # The oldest first: nothing is older than what it is made of.
    for stamp in sorted((ROOT / ".venv").glob("*.stamp"), key=lambda stamp: stamp.stat().st_mtime):
        (venv / stamp.name).touch()
    return {**os.environ, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
