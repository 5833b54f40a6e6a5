"""Memory bandwidth of this machine, with the contenders' number of threads: the floor of every time."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import onnx_ir

from clada.benchmark.storage import weight
from clada.ops import DOMAIN
from clada.ops.record import Array
from clada.plugins.onnxruntime import library_path

# Far beyond any cache.
_BYTES = 1 << 29


@cache
def _parts(threads: int) -> list[Array]:
    """Allocate the memory to read, one part per thread; written once, so that it is really there."""
    return np.array_split(np.ones(_BYTES // 8, np.int64), threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@cache
def _read() -> Callable[[int, int], float]:
    """Time one thread's read of a number of bytes at an address, in seconds."""
    read = ctypes.CDLL(str(library_path())).clada_read_seconds
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_double
    return read


def read_bandwidth(threads: int) -> float:
    """Bytes per second that this many threads read together.

    Raises:
        CladaError: There is no library of native kernels, which is what reads.
    """
    read = _read()
    seconds = _pool(threads).map(lambda part: read(part.ctypes.data, part.nbytes), _parts(threads))
    return _BYTES / max(seconds)


def weight_bytes(model: onnx_ir.Model) -> tuple[int, int]:
    """Bytes of the weight matrices that a token reads: those of our ops' neurons, and all others.

    The embedding is not among them: of that a token reads one row.
    """
    neurons = others = 0
    for node in model.graph:
        if node.domain == DOMAIN:
            neurons += sum(tensor.nbytes for tensor in map(weight, node.inputs) if tensor is not None)
        elif node.op_type == "MatMul":
            tensor = weight(node.inputs[1])
            others += 0 if tensor is None else tensor.nbytes
        elif node.op_type == "MatMulNBits":
            contents = [value.const_value for value in node.inputs[1:] if value is not None]
            others += sum(content.nbytes for content in contents if content is not None)
    return neurons, others
