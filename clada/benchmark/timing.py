"""Timing of contenders in turns, so that other load on the machine affects all of them alike."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

from clada.benchmark.contender import Contender

# Each has run once already, when it was checked.
WARM_UP = 1


@dataclass
class Samples:
    """Measurements of one contender, one entry per round.

    Args:
        seconds: Time of one run.
        bandwidth: Bytes per second that the machine read just before; empty where it was not measured.
        active: Share of neurons computed.
    """

    seconds: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    active: list[float] = field(default_factory=list)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[], object]]:
    """Progress bar on a terminal, where tqdm is installed; each call of the yielded function counts one step."""
    if find_spec("tqdm") is None:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, disable=None, leave=False) as bar:
        yield bar.update


def wall_seconds(run: Callable[[], float]) -> tuple[float, float]:
    """Time one run, in seconds, and return its result too."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    bandwidth: Callable[[], float] | None,
    label: str,
    timed: Callable[[Callable[[], float]], tuple[float, float]] = wall_seconds,
) -> dict[str, Samples]:
    """Time every contender that can run once per round, in an order that rotates.

    Args:
        contenders: Contenders to time.
        rounds: Number of rounds.
        bandwidth: Measures the read bandwidth before each time.
        label: Label of the progress bar.
        timed: Measures the seconds of one run, and returns its result too.
    """
    running = [(c.name, c.run, c.repeats, c.prepare) for c in contenders if c.run is not None]
    samples = {name: Samples() for name, *_ in running}
    for _, run, _, prepare in running:
        for _ in range(WARM_UP):
            if prepare is not None:
                prepare()
            run()
    gc.collect()
    gc.disable()
    try:
        with progress_bar(rounds * len(running), label) as advance:
            for turn in range(rounds):
                first = turn % len(running)
                for name, run, repeats, prepare in running[first:] + running[:first]:
                    if prepare is not None:
                        prepare()
                    if bandwidth is not None:
                        samples[name].bandwidth.append(bandwidth())
                    seconds, active = timed(run)
                    samples[name].seconds.append(seconds / repeats)
                    samples[name].active.append(active)
                    advance()
    finally:
        gc.enable()
    return samples
