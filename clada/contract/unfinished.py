"""Files that take their name when they are whole."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A new file in the output's folder, of the umask's mode, that is gone at the end unless it was renamed.

    Args:
        output: What it is to be; its suffix is the new file's too.

    Raises:
        OSError: The folder takes no files.
    """
    # Not by tempfile: that makes files for their owner alone.
    path = output.with_name(f".clada-{secrets.token_hex(4)}{output.suffix}")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
