"""Hashes of the pieces of a large file, which several processors check at once."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Of the manifest, for files longer than a piece: bytes of a piece, and for each file its pieces' SHA-256 in hex.
PIECES_SECTION = "pieces"
PIECE_BYTES = 1 << 26
_READ_BYTES = 1 << 22


def _piece_hash(path: Path, start: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        while size > 0 and (read := stream.read(min(size, _READ_BYTES))):
            digest.update(read)
            size -= len(read)
    return digest.hexdigest()


def piece_hashes(path: Path, size: int = PIECE_BYTES) -> list[str]:
    """SHA-256, in hex, of each `size` bytes of a file, the last of what is left."""
    starts = range(0, path.stat().st_size, size)
    # hashlib lets other threads go on meanwhile.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda start: _piece_hash(path, start, size), starts))
