"""Builds the stand-ins for what is compiled for CUDA, with the compiler of the host (tests/support/CMakeLists.txt)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from tests.conftest import ROOT

_FOLDER = ROOT / "build" / "stand-ins"


def build_stand_in(target: str) -> Path:
    """The library of a target, built from the sources as they are now."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join((beside, os.environ.get("PATH", "")))
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    options = ["-DCLADA_KERNEL_TESTS=ON", "-DCLADA_GPU_SUITE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    options += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={_FOLDER / 'lib'}"]
    configure = [cmake, "-S", ROOT, "-B", _FOLDER, "-G", "Ninja", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *options]
    # One process at a time, as tests run in several.
    with FileLock(_FOLDER / "lock"):
        for command in (configure, [cmake, "--build", _FOLDER, "--target", target]):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
    return _FOLDER / "lib" / f"lib{target}.so"
