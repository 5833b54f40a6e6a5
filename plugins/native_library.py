"""Paths and file names of native libraries."""

import sys
from importlib import import_module
from pathlib import Path


def file_name(library: str) -> str:
    """File name of one of our libraries on this system, as CMake names it."""
    return f"{library}.dll" if sys.platform == "win32" else f"lib{library}.so"


def library_file(package: str, library: str) -> Path:
    """Path of a package's library, existing or not: an editable installation has it in a folder of its own."""
    paths = [Path(folder) / file_name(library) for folder in import_module(package).__path__]
    return next((path for path in paths if path.is_file()), paths[0])
