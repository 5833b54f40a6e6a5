"""CUDA driver, called by ctypes: a GPU, its memory, a stream and graphs, with no package and no CUDA toolkit."""

import ctypes
import sys
import weakref
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from clada.errors import CladaError
from clada.runtime.models.memory import Array

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Values of the driver's enumerations, which its versions keep.
_ERROR_OUT_OF_MEMORY = 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_STREAM_NON_BLOCKING = 1
_MEMORY_OF_DEVICE = 2
_CAPTURE_THREAD_LOCAL = 1


def why_no_gpu() -> str:
    """Reason why there is no GPU, according to the driver; empty where there is one."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"this machine has no NVIDIA driver ({_LIBRARY} is not found): install one, or run on the CPU"
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver finds no GPU that it can use (cuInit gives error {code}): see nvidia-smi"
    count = c_int(0)
    driver.cuDeviceGetCount(byref(count))
    return "" if count.value else "the NVIDIA driver finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES"


class DriverError(CladaError):
    """Failed call of the driver."""

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"the GPU failed: {function} gives {name} ({code})")
        self.code = code


def in_bytes(size: int) -> str:
    """Format a number of bytes for a person."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


# Of the driver's CUDA_MEMCPY2D, of either side.
_SIDE = (
    ("x", c_size_t),
    ("y", c_size_t),
    ("memory_type", c_uint),
    ("host", c_void_p),
    ("device", c_uint64),
    ("array", c_void_p),
    ("pitch", c_size_t),
)


class _Copy2D(ctypes.Structure):
    """Structure CUDA_MEMCPY2D of the driver."""

    _fields_ = (
        *((f"source_{name}", kind) for name, kind in _SIDE),
        *((f"target_{name}", kind) for name, kind in _SIDE),
        ("width", c_size_t),
        ("height", c_size_t),
    )


class GpuArray:
    """Array in a GPU's memory, freed with the last reference to it; see `memory.Placed`.

    Args:
        gpu: The GPU.
        shape: Its sizes.
        dtype: Its type.
    """

    def __init__(self, gpu: "Gpu", shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._gpu, self._shape, self._dtype = gpu, shape, dtype
        self.size = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
        self._address = gpu.allocate(self.size)
        weakref.finalize(self, gpu.free, self._address).atexit = False

    def data_ptr(self) -> int:
        """See Placed."""
        return self._address

    def update_inplace(self, array: Array) -> None:
        """See Placed."""
        array = np.ascontiguousarray(array)
        self._gpu.write(self._address, array.ctypes.data, array.nbytes)

    def numpy(self) -> Array:
        """See Placed."""
        array = np.empty(self._shape, self._dtype)
        self._gpu.read(array.ctypes.data, self._address, array.nbytes)
        return array


class Gpu:
    """First GPU that the driver shows, in the context that CUDA's libraries share, with a stream of its own.

    Raises:
        CladaError: There is none, or the driver fails.
    """

    def __init__(self) -> None:
        reason = why_no_gpu()
        if reason:
            raise CladaError(f"no CUDA device: {reason}")
        self._driver = ctypes.CDLL(_LIBRARY)
        self._context = c_void_p()
        device, stream = c_int(), c_void_p()
        self._check("cuDeviceGet", byref(device), c_int(0))
        self._check("cuDevicePrimaryCtxRetain", byref(self._context), device)
        self._call("cuStreamCreate", byref(stream), c_uint(_STREAM_NON_BLOCKING))
        self.stream = int(stream.value or 0)
        major, minor = (self._attribute(device, which) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
        self.compute_capability = f"{major}.{minor}"
        name = ctypes.create_string_buffer(256)
        self._check("cuDeviceGetName", name, c_int(len(name)), device)
        self.name = name.value.decode(errors="replace")

    def _attribute(self, device: c_int, which: int) -> int:
        value = c_int()
        self._check("cuDeviceGetAttribute", byref(value), c_int(which), device)
        return value.value

    def _check(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            name = c_char_p()
            self._driver.cuGetErrorName(c_int(code), byref(name))
            raise DriverError(function, code, (name.value or b"an error").decode())

    def _call(self, function: str, *arguments: Any) -> None:
        """Call the driver in the GPU's context, whatever the thread has been doing."""
        self._check("cuCtxSetCurrent", self._context)
        self._check(function, *arguments)

    def allocate(self, size: int) -> int:
        """Allocate memory, filled with zeros, and return its address.

        Raises:
            CladaError: There is no room, or the driver fails.
        """
        address = c_uint64()
        try:
            self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
        except DriverError as error:
            if error.code != _ERROR_OUT_OF_MEMORY:
                raise
            raise CladaError(
                f"the GPU's memory is full: {in_bytes(size)} were asked for and {in_bytes(self.free_memory())} are "
                "free: take fewer texts at once, or build an engine of a smaller capacity or in float16"
            ) from error
        self.clear(address.value, size)
        return address.value

    def clear(self, address: int, size: int) -> None:
        """Fill memory with zeros."""
        self._call("cuMemsetD8Async", c_uint64(address), c_ubyte(0), c_size_t(size), c_void_p(self.stream))

    def free(self, address: int) -> None:
        """Free memory, once all that uses it is done; an error here would be of something else."""
        self._driver.cuCtxSetCurrent(self._context)
        self._driver.cuStreamSynchronize(c_void_p(self.stream))
        self._driver.cuMemFree_v2(c_uint64(address))

    def free_memory(self) -> int:
        """Number of free bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def place(self, array: Array) -> GpuArray:
        """Copy an array to the GPU's memory."""
        placed = GpuArray(self, array.shape, array.dtype)
        placed.update_inplace(array)
        return placed

    def empty(self, size: int) -> GpuArray:
        """Allocate bytes of the GPU's memory, filled with zeros."""
        return GpuArray(self, (size,), np.dtype(np.uint8))

    def write(self, address: int, source: int, size: int) -> None:
        """Copy bytes of this process's memory to the GPU's; they may change once this returns."""
        arguments = c_uint64(address), c_void_p(source), c_size_t(size), c_void_p(self.stream)
        self._call("cuMemcpyHtoDAsync_v2", *arguments)

    def read(self, target: int, address: int, size: int) -> None:
        """Copy bytes of the GPU's memory to this process's, once all previous work is done."""
        arguments = c_void_p(target), c_uint64(address), c_size_t(size), c_void_p(self.stream)
        self._call("cuMemcpyDtoHAsync_v2", *arguments)
        self._call("cuStreamSynchronize", c_void_p(self.stream))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes within the GPU's memory."""
        self._call("cuMemcpyDtoDAsync_v2", c_uint64(target), c_uint64(source), c_size_t(size), c_void_p(self.stream))

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Copy rows of `width` bytes that begin `pitch` bytes after each other."""
        copied = _Copy2D(width=width, height=rows)
        copied.source_memory_type = copied.target_memory_type = _MEMORY_OF_DEVICE
        copied.source_device, copied.source_pitch = source, source_pitch
        copied.target_device, copied.target_pitch = target, target_pitch
        self._call("cuMemcpy2DAsync_v2", byref(copied), c_void_p(self.stream))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Capture the work that a function puts into the stream, without running it.

        Returns:
            A function that launches all of the captured work.
        """
        captured, executable = c_void_p(), c_void_p()
        stream = c_void_p(self.stream)
        self._call("cuStreamBeginCapture_v2", stream, c_int(_CAPTURE_THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:
            self._driver.cuStreamEndCapture(stream, byref(captured))  # its own error says less
            raise
        self._call("cuStreamEndCapture", stream, byref(captured))
        self._call("cuGraphInstantiateWithFlags", byref(executable), captured, c_uint64(0))
        self._call("cuGraphDestroy", captured)

        def launch() -> None:
            self._call("cuGraphLaunch", executable, stream)

        weakref.finalize(launch, self._driver.cuGraphExecDestroy, executable).atexit = False
        return launch


def compute_capability() -> str | None:
    """Compute capability of the first GPU, as "8.9"; None where there is no driver or no GPU."""
    return None if why_no_gpu() else Gpu().compute_capability
