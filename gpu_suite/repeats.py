"""Contenders that run long enough to be timed on a device."""

import math
from collections.abc import Callable

from clada.benchmark.contender import Contender
from clada.errors import CladaError
from gpu_suite.device import Device, Run

# What starts and ends a time is far below this.
_SECONDS = 2e-3
_MOST = 100


def _times(run: Run, times: int, share: float) -> float:
    for _ in range(times):
        run()
    return share


def _estimated(device: Device, run: Run) -> float:
    def once() -> float:
        run()
        return 0.0

    device.timed(once)
    return device.timed(once)[0]


def contender(
    device: Device,
    name: str,
    launch: Callable[[], None],
    copies: int,
    graph: bool,
    *,
    always_bytes: float,
    active_bytes: float = 0,
    share: float = 1.0,
    target: float | None = None,
) -> Contender:
    """A contender that is launched, or replayed as a CUDA graph, as often as a time must take.

    Args:
        device: Where it runs.
        name: Of the contender.
        launch: Launches all copies once.
        copies: How many.
        graph: Whether to replay them as one graph.
        always_bytes: What a copy reads whatever is active.
        active_bytes: What comes on top when all neurons are read.
        share: Share of neurons that is read.
        target: Share of neurons that each token was asked to keep; None for dense ones.

    Raises:
        CladaError: A graph was asked for and the device has none.
    """
    run: Run = launch
    if graph:
        if device.captured is None:
            raise CladaError(f"{name} cannot be replayed as a graph: {device.name} has none")
        run = device.captured(launch)
    times = min(_MOST, max(1, math.ceil(_SECONDS / max(_estimated(device, run), 1e-9))))
    return Contender(
        name,
        lambda: _times(run, times, share),
        always_bytes,
        active_bytes,
        target,
        repeats=copies * times,
    )
