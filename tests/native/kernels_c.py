"""The CPU kernels, called with NumPy arrays whose surroundings are watched."""

import ctypes
import os
from collections.abc import Mapping

import numpy as np

from clada.ops import LOAD_SIGNAL
from clada.ops.record import Array, Op
from tests.native.calls import (
    GuardedArrays,
    from_element,
    place_call,
    place_linear_call,
)

LIBRARY = ctypes.CDLL(os.environ["CLADA_KERNELS_LIBRARY"])


def sparse_ffn(
    op: Op,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, str | float],
    *,
    instructions: str,
    threads: int = 1,
    element: str = "float32",
    weight_element: str = "float32",
    offset: int = 0,
) -> tuple[Array, Array, Array]:
    """Call the kernel of a feed-forward op.

    Args:
        op: A feed-forward op.
        inputs: As of a case of the op.
        attributes: As of a case of the op.
        instructions: The instruction set.
        threads: Number of threads to spread the work over.
        element: Type of x, the biases and y.
        weight_element: Type of the weight matrices, where they are not quantized.
        offset: Bytes by which every array is off a cache line.

    Returns:
        y in float64, active and score.
    """
    memory = GuardedArrays(offset)
    call, (y, active, score) = place_call(memory, op, inputs, attributes, element, weight_element)
    with memory.watched():
        assert LIBRARY.test_sparse_ffn(instructions.encode(), threads, ctypes.byref(call)) == 0
    return from_element(y, element), active, score


def sparse_linear(
    inputs: Mapping[str, Array],
    *,
    instructions: str,
    threads: int = 1,
    element: str = "float32",
    weight_element: str = "float32",
    quantization: tuple[int, int] | None = None,
    byte_factors: bool = False,
    offset: int = 0,
) -> tuple[Array, Array]:
    """Call the kernel of SparseLinear, or, with bits and a block size, of its quantized variant.

    `byte_factors` is that of the call, other arguments are those of `sparse_ffn`; returns y in float64, and kept.
    """
    memory = GuardedArrays(offset)
    call, (y, kept) = place_linear_call(memory, inputs, element, weight_element, quantization)
    call.byte_factors = byte_factors
    with memory.watched():
        assert LIBRARY.test_sparse_linear(instructions.encode(), threads, ctypes.byref(call)) == 0
    return from_element(y, element), kept


def load_signal(
    inputs: Mapping[str, Array],
    surprisal_weight: float,
    *,
    instructions: str,
    element: str = "float32",
    offset: int = 0,
) -> tuple[int, list[Array]]:
    """Call the kernel of LoadSignal: 0, or the number of the row whose token is bad, from 1; and its outputs."""
    memory = GuardedArrays(offset)
    call, outputs = place_call(memory, LOAD_SIGNAL, inputs, {"surprisal_weight": surprisal_weight}, element, element)
    with memory.watched():
        result = LIBRARY.test_load_signal(instructions.encode(), ctypes.byref(call))
    assert result >= 0
    return result, outputs


def to_bfloat16(values: Array, instructions: str) -> Array:
    """The kernels' own rounding: bits of bfloat16."""
    out = np.empty(values.shape, np.uint16)
    size = ctypes.c_int64(values.size)
    assert LIBRARY.test_to_bfloat16(instructions.encode(), values.ctypes, out.ctypes, size) == 0
    return out


def available(instructions: str) -> bool:
    """Whether this processor has an instruction set."""
    nothing = np.empty(0, np.float32)
    return LIBRARY.test_to_bfloat16(instructions.encode(), nothing.ctypes, nothing.ctypes, ctypes.c_int64(0)) == 0
