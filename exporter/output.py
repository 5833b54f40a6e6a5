"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from clada.plugins.errors import CladaError


def write(path: Path, content: bytes) -> None:
    """Write a file in one go.

    Raises:
        CladaError: It cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".clada-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
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
