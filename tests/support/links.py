"""Artifacts whose files are links, as caches and copies of folders have them."""

import hashlib
import os
from pathlib import Path


def hub_cache(folder: Path, target: Path) -> Path:
    """A folder of symbolic links into one of files named by their content; returns the former."""
    blobs, snapshot = target / "blobs", target / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        content = path.read_bytes()
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def hard_links(folder: Path, target: Path) -> Path:
    """Copy a folder with hard links, as `cp -al` does."""
    target.mkdir()
    for path in folder.iterdir():
        os.link(path, target / path.name)
    return target


LAYOUTS = {"hub cache": hub_cache, "hard links": hard_links}
