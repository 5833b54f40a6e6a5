"""Load time and resident memory of a model, each measured in a process of its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clada.benchmark.own_process import in_own_process
from clada.errors import CladaError

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Footprint:
    """Load time and memory of one way to run a model.

    Args:
        shape: Name of the shape.
        name: The contender.
        load_seconds: Median time until it can run, its file in the system's cache.
        load_samples: Every time.
        resident_bytes: Median resident set after a few tokens.
        before_bytes: Resident set of the process before it loaded the model.
        weight_bytes: Size of the file of its weights.
    """

    shape: str
    name: str
    load_seconds: float
    load_samples: tuple[float, ...]
    resident_bytes: float
    before_bytes: float
    weight_bytes: int


def _resident() -> int:
    """Bytes of this process that are in memory."""
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def _measured(load: Callable[[], Any], use: Callable[[Any], object]) -> tuple[float, int, int]:
    """Seconds to load, and the resident set before and after."""
    before = _resident()
    start = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - start
    use(model)
    return seconds, before, _resident()


def footprint(
    shape: str, name: str, load: Callable[[], Any], use: Callable[[Any], object], weights: Path, rounds: int
) -> Footprint:
    """Load a model in fresh processes, and measure time and memory.

    Args:
        shape: Name of the shape.
        name: The contender.
        load: Can be sent to another process, as can `use`.
        use: Reads a few tokens with what was loaded.
        weights: The file of its weights; read once before, so that no time is the disk's.
        rounds: Number of rounds.

    Raises:
        CladaError: This system does not say what is in memory.
    """
    if not _STATUS.exists():
        raise CladaError(f"there is no {_STATUS}, from which the resident set is read: measure it on Linux")
    with weights.open("rb") as stream:
        while stream.read(1 << 24):
            pass
    results = [in_own_process(_measured, load, use) for _ in range(rounds)]
    seconds, before, after = zip(*results, strict=True)
    return Footprint(
        shape,
        name,
        float(np.median(seconds)),
        tuple(seconds),
        float(np.median(after)),
        float(np.median(before)),
        weights.stat().st_size,
    )


def footprint_lines(found: Sequence[Footprint]) -> list[str]:
    """Format footprints, one line each."""
    return [
        f"{one.shape}, {one.name}: loads in {one.load_seconds:.2f} s; {one.resident_bytes / 1e6:.0f} MB resident, of "
        f"which {one.before_bytes / 1e6:.0f} MB before, for {one.weight_bytes / 1e6:.0f} MB of weights"
        for one in found
    ]
