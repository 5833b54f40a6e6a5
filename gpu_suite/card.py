"""The card of this machine, and why there is none to be used."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass

import torch

from clada.errors import CladaError

_DRIVER = "libcuda.so.1"


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
