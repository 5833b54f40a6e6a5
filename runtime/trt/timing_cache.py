"""Timing cache of TensorRT's kernels, kept from one build to the next, which is then faster."""

import os
import warnings
from pathlib import Path
from typing import Any

from clada.contract.files import write, written
from clada.errors import CladaError


def cache_path(release: str, capability: str) -> Path:
    """Path of the timing cache for a release of TensorRT on a GPU, shared by all of a user's models."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "clada" / f"tensorrt-{release}-sm_{capability.replace('.', '')}.timing"


def use_cache(config: Any, path: Path) -> None:
    """Load the timing cache into a build; TensorRT measures anew where it rejects it."""
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def keep_cache(config: Any, path: Path) -> None:
    """Save the timing cache of a build; where that fails, the next build measures again, and a note says so."""
    try:
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write(path, memoryview(config.get_timing_cache().serialize()))
    except CladaError as error:
        warnings.warn(f"the next build will take as long: {error}", stacklevel=2)
