"""Where native libraries are, and how the system names them."""

import sys
from importlib import import_module
from pathlib import Path


def file_name(library: str) -> str:
    """The file of one of ours on this system, as CMake names it."""
    return f"{library}.dll" if sys.platform == "win32" else f"lib{library}.so"


def library_file(package: str, library: str) -> Path:
    """Where a library of a package lies, or would: an editable installation has it in a folder of its own."""
    paths = [Path(folder) / file_name(library) for folder in import_module(package).__path__]
    return next((path for path in paths if path.is_file()), paths[0])
