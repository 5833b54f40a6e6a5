"""The CUDA kernels in the host emulation, called with NumPy arrays whose surroundings are watched."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clada.ops import LOAD_SIGNAL
from clada.ops.record import Array, Op
from tests.native.calls import (
    GuardedArrays,
    from_element,
    place_call,
    place_linear_call,
)

WORKSPACE_BOUNDARY = 256


def load_emulated(path: str) -> ctypes.CDLL:
    """A library of emulated kernels."""
    library = ctypes.CDLL(path)
    for op in ("sparse_ffn", "sparse_linear", "load_signal"):
        if hasattr(library, f"clada_cuda_{op}_workspace"):
            getattr(library, f"clada_cuda_{op}_workspace").restype = ctypes.c_size_t
    library.cuda_emulation_products.restype = ctypes.c_void_p
    for name in ("cudaGetErrorString", "cuda_emulation_launches"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


_library = load_emulated(os.environ["CLADA_CUDA_EMULATION_LIBRARY"])
ROWWISE_TOKENS = _library.clada_cuda_rowwise_tokens()


@dataclass(frozen=True)
class Run:
    """Order and garbage with which the emulation runs a call.

    Args:
        order: Order of blocks and threads: 0 as they are numbered, 1 reversed, else shuffled by this seed.
        garbage: The byte that fills the workspace.
    """

    order: int = 0
    garbage: int = 0xFF


# NaN and -1 in the workspace, then small numbers, then zeros.
RUNS = (Run(0, 0xFF), Run(1, 0xA5), Run(2, 0x00))


def _check(error: int) -> None:
    assert error == 0, _library.cudaGetErrorString(error).decode()


def _run_tokens(memory: GuardedArrays, name: str, call: Any, run: Run) -> None:
    """Call the kernels of an op with a batch and a sequence, with products where there are many tokens."""
    launcher, size_of = (getattr(_library, f"clada_cuda_{name}{end}") for end in ("", "_workspace"))
    workspace = memory.place_unset((size_of(ctypes.byref(call)),), "uint8", WORKSPACE_BOUNDARY, run.garbage)
    rowwise = call.batch * call.sequence <= ROWWISE_TOKENS
    products = ctypes.c_void_p(None if rowwise else _library.cuda_emulation_products())
    _library.cuda_emulation_order(run.order)
    with memory.watched():
        _check(launcher(ctypes.byref(call), workspace.ctypes, products, None))


def sparse_ffn(
    op: Op,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, str | float],
    *,
    element: str = "float32",
    offset: int = 0,
    run: Run = RUNS[0],
) -> tuple[Array, Array, Array]:
    """Call the kernels of a feed-forward op.

    Args:
        op: A feed-forward op.
        inputs: As of a case of the op.
        attributes: As of a case of the op.
        element: Type of x, biases and y, and of weights that are not quantized.
        offset: Bytes by which every array but the workspace is off a cache line.
        run: Order and garbage of the run.

    Returns:
        y in float64, active and score.
    """
    memory = GuardedArrays(offset)
    call, (y, active, score) = place_call(memory, op, inputs, attributes, element, element)
    _run_tokens(memory, "sparse_ffn", call, run)
    return from_element(y, element), active, score


def sparse_linear(
    inputs: Mapping[str, Array],
    *,
    element: str = "float32",
    quantization: tuple[int, int] | None = None,
    offset: int = 0,
    run: Run = RUNS[0],
) -> tuple[Array, Array]:
    """Call the kernels of SparseLinear, as `sparse_ffn` does, or of its quantized variant.

    Returns:
        y in float64, and kept.
    """
    memory = GuardedArrays(offset)
    call, (y, kept) = place_linear_call(memory, inputs, element, element, quantization)
    _run_tokens(memory, "sparse_linear", call, run)
    return from_element(y, element), kept


def load_signal(
    inputs: Mapping[str, Array],
    surprisal_weight: float,
    *,
    element: str = "float32",
    offset: int = 0,
    run: Run = RUNS[0],
) -> list[Array]:
    """Call the kernels of LoadSignal; returns its outputs."""
    memory = GuardedArrays(offset)
    call, outputs = place_call(memory, LOAD_SIGNAL, inputs, {"surprisal_weight": surprisal_weight}, element, element)
    size = _library.clada_cuda_load_signal_workspace(ctypes.byref(call))
    workspace = memory.place_unset((size,), "uint8", WORKSPACE_BOUNDARY, run.garbage)
    _library.cuda_emulation_order(run.order)
    with memory.watched():
        _check(_library.clada_cuda_load_signal(ctypes.byref(call), workspace.ctypes, None))
    return outputs


def sparse_ffn_error(
    op: Op,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, str | float],
    weight_element: str = "float32",
    without: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> int:
    """The cudaError_t of a float32 call with no products.

    Args:
        op: A feed-forward op.
        inputs: As of a case of the op.
        attributes: As of a case of the op.
        weight_element: Type of the weights.
        without: One of its pointers, which is null.
        sizes: Sizes that it says it has instead of those of the inputs.

    Returns:
        The error's number.
    """
    memory = GuardedArrays(0)
    call, _ = place_call(memory, op, inputs, attributes, "float32", weight_element)
    if without:
        setattr(call, without, None)
    for name, size in (sizes or {}).items():
        setattr(call, name, size)
    size = _library.clada_cuda_sparse_ffn_workspace(ctypes.byref(call))
    workspace = memory.place_unset((size,), "uint8", WORKSPACE_BOUNDARY)
    with memory.watched():
        return _library.clada_cuda_sparse_ffn(ctypes.byref(call), workspace.ctypes, None, None)


def sparse_linear_error(
    inputs: Mapping[str, Array],
    weight_element: str = "float32",
    quantization: tuple[int, int] | None = None,
    said: Mapping[str, int | None] | None = None,
) -> int:
    """The cudaError_t of a float32 call with no products.

    Args:
        inputs: As of a case of the op.
        weight_element: Type of w.
        quantization: Bits and block size.
        said: Fields of the call to replace, by name: a size, or no address.

    Returns:
        The error's number.
    """
    memory = GuardedArrays(0)
    call, _ = place_linear_call(memory, inputs, "float32", weight_element, quantization)
    for name, value in (said or {}).items():
        setattr(call, name, value)
    size = _library.clada_cuda_sparse_linear_workspace(ctypes.byref(call))
    workspace = memory.place_unset((size,), "uint8", WORKSPACE_BOUNDARY)
    with memory.watched():
        return _library.clada_cuda_sparse_linear(ctypes.byref(call), workspace.ctypes, None, None)


def load_signal_error(inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None) -> int:
    """The cudaError_t of a call of LoadSignal, which may say that it has other sizes than its inputs."""
    memory = GuardedArrays(0)
    call, _ = place_call(memory, LOAD_SIGNAL, inputs, {"surprisal_weight": 0.5}, "float32", "float32")
    for name, size in (sizes or {}).items():
        setattr(call, name, size)
    size = _library.clada_cuda_load_signal_workspace(ctypes.byref(call))
    workspace = memory.place_unset((size,), "uint8", WORKSPACE_BOUNDARY)
    with memory.watched():
        return _library.clada_cuda_load_signal(ctypes.byref(call), workspace.ctypes, None)


def sparse_ffn_workspace(op: Op, inputs: Mapping[str, Array], attributes: Mapping[str, str | float]) -> int:
    """Bytes that a float32 call needs."""
    call, _ = place_call(GuardedArrays(0), op, inputs, attributes, "float32", "float32")
    size: int = _library.clada_cuda_sparse_ffn_workspace(ctypes.byref(call))
    return size


def sparse_linear_workspace(inputs: Mapping[str, Array], quantization: tuple[int, int] | None = None) -> int:
    """Bytes that a float32 call needs."""
    call, _ = place_linear_call(GuardedArrays(0), inputs, "float32", "float32", quantization)
    size: int = _library.clada_cuda_sparse_linear_workspace(ctypes.byref(call))
    return size


def launches() -> list[str]:
    """The kernels started since the last call of this, with grids and blocks."""
    return _library.cuda_emulation_launches().decode().splitlines()
