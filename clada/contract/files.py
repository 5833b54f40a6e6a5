"""Files that are written whole or not at all."""

import tempfile
from pathlib import Path

from clada.contract.unfinished import unfinished
from clada.errors import CladaError


def write(path: Path, content: bytes) -> None:
    """Write a file in one go.

    Raises:
        CladaError: It cannot be written.
    """
    try:
        with unfinished(path) as file:
            file.write_bytes(content)
            file.replace(path)
    except OSError as error:
        raise CladaError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Fail now, rather than after an hour, where a file cannot be written.

    Raises:
        CladaError: It is a folder, or its folder takes no files.
    """
    if path.is_dir():
        raise CladaError(f"cannot write {path}: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CladaError(f"cannot write {path}: {error.strerror or error}") from error
