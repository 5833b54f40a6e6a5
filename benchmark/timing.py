"""Times contenders in turns, so that whatever else the machine does meets all of them alike."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from clada.benchmark.contender import Contender

# Each has run once already, when it was checked.
WARM_UP = 1


@dataclass
class Samples:
    """Of one contender, one entry a round.

    Args:
        seconds: How long it took once.
        bandwidth: Bytes a second that the machine read just before; empty where it was not measured.
        active: Share of neurons computed.
    """

    seconds: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    active: list[float] = field(default_factory=list)


def measure(
    contenders: Sequence[Contender], rounds: int, bandwidth: Callable[[], float] | None, label: str
) -> dict[str, Samples]:
    """Time every contender that can run once a round, in an order that rotates.

    Args:
        contenders: What to time.
        rounds: How often.
        bandwidth: Measures the read bandwidth before each time.
        label: What the progress bar says.
    """
    running = [(c.name, c.run, c.repeats) for c in contenders if c.run is not None]
    samples = {name: Samples() for name, *_ in running}
    for _, run, _ in running:
        for _ in range(WARM_UP):
            run()
    gc.collect()
    gc.disable()
    try:
        with tqdm(total=rounds * len(running), desc=label, disable=None, leave=False) as progress:
            for turn in range(rounds):
                first = turn % len(running)
                for name, run, repeats in running[first:] + running[:first]:
                    if bandwidth is not None:
                        samples[name].bandwidth.append(bandwidth())
                    start = time.perf_counter()
                    active = run()
                    samples[name].seconds.append((time.perf_counter() - start) / repeats)
                    samples[name].active.append(active)
                    progress.update()
    finally:
        gc.enable()
    return samples
