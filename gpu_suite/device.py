"""What the measurements need of a device: streams, memory by address, CUDA graphs and a clock."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

Run = Callable[[], object]
# Warm-up runs before a capture: libraries make their handles and workspaces in the first.
_BEFORE_CAPTURE = 3


@dataclass(frozen=True)
class Device:
    """Where tensors lie and kernels run.

    Args:
        name: As torch calls it.
        stream: The address of the stream that torch launches on now.
        at: The bytes at an address, as a tensor uint8[n].
        synchronize: Waits for all work.
        captured: What replays a run as a CUDA graph; None where there are no graphs.
        timed: Seconds of a run on the device, and what it returns.
    """

    name: str
    stream: Callable[[], int]
    at: Callable[[int, int], torch.Tensor]
    synchronize: Callable[[], None]
    captured: Callable[[Run], Run] | None
    timed: Callable[[Callable[[], float]], tuple[float, float]]


class _Bytes:
    """Device memory that torch can look at."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 2}


# Kept, so that nothing is asked of the driver while a graph is captured.
@lru_cache(1 << 14)
def _at(address: int, size: int) -> torch.Tensor:
    return torch.as_tensor(_Bytes(address, size), device="cuda")


def _captured(run: Run) -> Run:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_BEFORE_CAPTURE):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _timed(run: Callable[[], float]) -> tuple[float, float]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    result = run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result


CUDA = Device(
    name="cuda",
    stream=lambda: torch.cuda.current_stream().cuda_stream,
    at=_at,
    synchronize=torch.cuda.synchronize,
    captured=_captured,
    timed=_timed,
)
