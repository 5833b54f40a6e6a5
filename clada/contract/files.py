"""Atomic writes of files, and hashes of them."""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clada.errors import CladaError


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """Create a new file in the output's folder, of the umask's mode, that is removed at the end unless it was renamed.

    Args:
        output: The file that it is to become; its suffix is the new file's too.

    Raises:
        OSError: The folder takes no files.
    """
    # Not by tempfile: that makes files for their owner alone.
    path = output.with_name(f".clada-{secrets.token_hex(4)}{output.suffix}")
    try:
        # Here, as an interruption may come as soon as the file is there.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def written(output: Path) -> Iterator[None]:
    """Turn a failure to write the output, within the context, into a CladaError."""
    try:
        yield
    except OSError as error:
        raise CladaError(f"cannot write {output}: {error.strerror or error}") from error


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically.

    Raises:
        CladaError: It cannot be written.
    """
    with written(path), unfinished(path) as file:
        file.write_bytes(content)
        file.replace(path)


def check_writable(path: Path) -> None:
    """Fail now, rather than after an hour, where a file cannot be written.

    Raises:
        CladaError: It is a folder, or its folder takes no files.
    """
    if path.is_dir():
        raise CladaError(f"cannot write {path}: it is a folder")
    with written(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
