"""Hashes of the pieces of a large file, which several processors check in parallel."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE_BYTES = 1 << 26
_READ_BYTES = 1 << 20


def _piece_hash(path: Path, start: int, size: int) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ_BYTES))
    # Into one buffer that stays in the processor's cache, not into new memory each time.
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while size > 0 and (read := stream.readinto(buffer[:size])):
            digest.update(buffer[:read])
            size -= read
    return digest.hexdigest()


def piece_hashes(path: Path, size: int = PIECE_BYTES) -> list[str]:
    """SHA-256, in hex, of each `size` bytes of a file; the last piece may be shorter."""
    starts = range(0, path.stat().st_size, size)
    # hashlib lets other threads go on meanwhile.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda start: _piece_hash(path, start, size), starts))
