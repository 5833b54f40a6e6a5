"""The card of this machine, and what the suite needs of a device: streams, memory, CUDA graphs and a clock."""

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from clada.errors import CladaError

_DRIVER = "libcuda.so.1"
Run = Callable[[], object]
# Warm-up runs before a capture: libraries make their handles and workspaces in the first.
_BEFORE_CAPTURE = 3
_MARGIN = 512
_SENTINEL = 0xA5
# As float32, float16 and bfloat16 a NaN, as int32 -1.
POISON = 0xFF
# What the launchers ask for; torch's own memory is aligned to 512.
ALIGNMENT = 256


@dataclass(frozen=True)
class Card:
    """A GPU.

    Args:
        name: As the driver calls it.
        architecture: What nvcc calls it, as "sm_90".
        multiprocessors: How many.
        memory_bytes: All of it.
        l2_bytes: Its last cache.
        driver: The driver's version; empty where nvidia-smi is not there to tell.
        driver_cuda: The newest CUDA that the driver serves, as "13.0".
    """

    name: str
    architecture: str
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    driver: str
    driver_cuda: str

    @property
    def file_name(self) -> str:
        """Its name in small letters, for a file."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())


def _checked_driver() -> str:
    """The newest CUDA that the driver serves.

    Raises:
        CladaError: There is no driver, or it finds no GPU.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise CladaError(
            f"this machine has no CUDA driver ({_DRIVER} does not load); run this where there is a GPU"
        ) from error
    result = driver.cuInit(0)
    if result:
        raise CladaError(f"the CUDA driver finds no GPU that it can use (cuInit returned {result}); see nvidia-smi")
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _driver_version() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0].strip() if lines else ""


def find_card() -> Card:
    """The card that torch computes on.

    Raises:
        CladaError: There is no driver, no GPU, or torch has no CUDA.
    """
    driver_cuda = _checked_driver()
    if torch.version.cuda is None:
        raise CladaError(f"torch {torch.__version__} was built without CUDA; install a build with CUDA")
    if not torch.cuda.is_available():
        raise CladaError(
            f"torch {torch.__version__} cannot use this GPU: it was built for CUDA {torch.version.cuda}, "
            f"the driver serves up to CUDA {driver_cuda}"
        )
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Card(
        properties.name,
        f"sm_{properties.major}{properties.minor}",
        properties.multi_processor_count,
        properties.total_memory,
        properties.L2_cache_size,
        _driver_version(),
        driver_cuda,
    )


@dataclass(frozen=True)
class Device:
    """Device on which tensors lie and kernels run.

    Args:
        name: As torch calls it.
        stream: The address of the stream that torch launches on now.
        at: The bytes at an address, as a tensor uint8[n].
        synchronize: Waits for all work.
        captured: Returns a replay of a run as a CUDA graph; None where there are no graphs.
        timed: Seconds of a run on the device, and what it returns.
    """

    name: str
    stream: Callable[[], int]
    at: Callable[[int, int], torch.Tensor]
    synchronize: Callable[[], None]
    captured: Callable[[Run], Run] | None
    timed: Callable[[Callable[[], float]], tuple[float, float]]


class _Bytes:
    """Device memory that torch can view."""

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


class GuardedMemory:
    """Memory in exactly as many bytes as are asked for, between bytes that nobody may write.

    Args:
        device: As torch calls it.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._blocks: list[tuple[torch.Tensor, int, int]] = []

    def reserve(self, size: int, boundary: int = ALIGNMENT, offset: int = 0) -> tuple[torch.Tensor, int]:
        """A block uint8[n], and where in it the memory starts: so many bytes past a boundary."""
        block = torch.full((2 * _MARGIN + boundary + offset + size,), _SENTINEL, dtype=torch.uint8, device=self._device)
        start = _MARGIN + -(block.data_ptr() + _MARGIN) % boundary + offset
        self._blocks.append((block, start, size))
        return block, start

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose content is poison."""
        size = math.prod(shape) * dtype.itemsize
        block, start = self.reserve(size)
        block[start : start + size] = POISON
        return block[start : start + size].view(dtype).view(*shape)

    def poison(self) -> None:
        """Fill all of it with NaN, or -1."""
        for block, start, size in self._blocks:
            block[start : start + size] = POISON

    def surroundings(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Guard bytes before each piece of it, and after."""
        for block, start, size in self._blocks:
            yield block[:start], block[start + size :]

    def damage(self) -> str:
        """Where something around it was written, in words; empty where nothing was."""
        for before, after in self.surroundings():
            if bool((before != _SENTINEL).any()):
                return "written before the beginning"
            if bool((after != _SENTINEL).any()):
                return "written past the end"
        return ""
