"""How the system names native libraries."""

import sys


def file_name(library: str) -> str:
    """The file of one of ours on this system, as CMake names it."""
    return f"{library}.dll" if sys.platform == "win32" else f"lib{library}.so"
