"""The kernels' C structures, and calls with NumPy arrays whose surroundings are watched."""

import ctypes
import os
from collections.abc import Mapping

import numpy as np

from clada.plugins.ops import LOAD_SIGNAL, SPARSE_GATED_FFN
from clada.plugins.ops.activations import ACTIVATIONS
from clada.plugins.ops.record import Array, Op

ELEMENTS = ("float32", "float16", "bfloat16")
SENTINEL = 0xA5
MARGIN = 192

_library = ctypes.CDLL(os.environ["CLADA_KERNELS_LIBRARY"])


_FFN_POINTERS = ("x", "w_in", "w_up", "w_out", "b_in", "b_out", "threshold", "scale", "pool", "y", "active", "score")


class _SparseFfnCall(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in ("batch", "sequence", "width", "neurons")]
        + [(name, ctypes.c_int) for name in ("activation", "element", "weight_element")]
        + [(name, ctypes.c_void_p) for name in _FFN_POINTERS]
    )


class _LoadSignalCall(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in ("batch", "vocabulary", "knots", "scale_knots_count")]
        + [("surprisal_weight", ctypes.c_float), ("element", ctypes.c_int)]
        + [(spec.name, ctypes.c_void_p) for spec in (*LOAD_SIGNAL.inputs, *LOAD_SIGNAL.outputs)]
    )


def to_element(array: Array, element: str) -> Array:
    """Rounded to an element type; bfloat16 as its bits."""
    if element != "bfloat16":
        return array.astype(element)
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_element(array: Array, element: str) -> Array:
    """In float64, from an element type."""
    if element != "bfloat16":
        return array.astype(np.float64)
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def rounded(array: Array, element: str) -> Array:
    """The float64 values that are left after rounding to an element type."""
    return from_element(to_element(array, element), element)


class _Guarded:
    """Arrays in exactly as much memory as they need, at least `offset` bytes past a boundary, between sentinels."""

    def __init__(self, offset: int) -> None:
        self._offset, self._blocks = offset, []

    def place(self, array: Array) -> Array:
        array = np.ascontiguousarray(array)
        block = np.full(2 * MARGIN + 64 + array.nbytes, SENTINEL, np.uint8)
        start = MARGIN + -(block.ctypes.data + MARGIN) % 64 + -(-self._offset // array.itemsize) * array.itemsize
        inside = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        inside[...] = array
        self._blocks.append((block, start, array.nbytes))
        return inside

    def check(self) -> None:
        for block, start, size in self._blocks:
            assert (block[:start] == SENTINEL).all(), "written before the beginning"
            assert (block[start + size :] == SENTINEL).all(), "written past the end"


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def sparse_ffn(
    op: Op,
    inputs: Mapping[str, Array],
    activation: str,
    *,
    instructions: str,
    threads: int = 1,
    element: str = "float32",
    weight_element: str = "float32",
    offset: int = 0,
) -> tuple[Array, Array, Array]:
    """Call the kernel of a feed-forward op.

    Args:
        op: SPARSE_GATED_FFN or SPARSE_FFN.
        inputs: As of a case of the op.
        activation: Name of the activation.
        instructions: The instruction set.
        threads: How many to spread the work over.
        element: Type of x, the biases and y.
        weight_element: Type of the weight matrices.
        offset: Bytes by which every array is off a cache line.

    Returns:
        y in float64, active and score.
    """
    gated = op is SPARSE_GATED_FFN
    memory = _Guarded(offset)
    placed = {}
    for name, array in inputs.items():
        if name.startswith("w_"):
            array = to_element(array, weight_element)
        elif name == "x" or name.startswith("b_"):
            array = to_element(array, element)
        placed[name] = memory.place(array)
    batch, sequence, width = inputs["x"].shape
    neurons = inputs["threshold"].shape[0]
    y = memory.place(np.zeros((batch, sequence, width), np.uint16 if element == "bfloat16" else element))
    active = memory.place(np.full((batch, sequence), -1, np.int32))
    score = memory.place(np.full((batch, neurons), np.nan, np.float32))
    w_in, w_out = ("w_gate", "w_down") if gated else ("w_in", "w_out")
    call = _SparseFfnCall(
        *(batch, sequence, width, neurons, list(ACTIVATIONS).index(activation)),
        *(ELEMENTS.index(element), ELEMENTS.index(weight_element)),
        *(_address(placed.get(name)) for name in ("x", w_in, "w_up", w_out, "b_in", "b_out")),
        *(_address(array) for array in (placed["threshold"], placed["scale"], placed["pool"], y, active, score)),
    )
    assert _library.test_sparse_ffn(instructions.encode(), threads, ctypes.byref(call)) == 0
    memory.check()
    return from_element(y, element), active, score


def load_signal(
    inputs: Mapping[str, Array],
    surprisal_weight: float,
    *,
    instructions: str,
    element: str = "float32",
    offset: int = 0,
) -> tuple[int, list[Array]]:
    """Call the kernel of LoadSignal: 0, or the number of the row whose token is bad, from 1; and its outputs."""
    memory = _Guarded(offset)
    placed = {name: memory.place(to_element(a, element) if name == "logits" else a) for name, a in inputs.items()}
    batch, vocabulary = inputs["logits"].shape
    outputs = [memory.place(np.full(batch, np.nan, np.float32)) for _ in LOAD_SIGNAL.outputs]
    call = _LoadSignalCall(
        *(batch, vocabulary, len(inputs["surprisal_knots"]), len(inputs["scale_knots"])),
        *(surprisal_weight, ELEMENTS.index(element)),
        *(_address(placed[spec.name]) for spec in LOAD_SIGNAL.inputs),
        *map(_address, outputs),
    )
    result = _library.test_load_signal(instructions.encode(), ctypes.byref(call))
    assert result >= 0
    memory.check()
    return result, outputs


def to_bfloat16(values: Array, instructions: str) -> Array:
    """The kernels' own rounding: bits of bfloat16."""
    out = np.empty(values.shape, np.uint16)
    size = ctypes.c_int64(values.size)
    assert _library.test_to_bfloat16(instructions.encode(), values.ctypes, out.ctypes, size) == 0
    return out


def available(instructions: str) -> bool:
    """Whether this processor has an instruction set."""
    nothing = np.empty(0, np.float32)
    return _library.test_to_bfloat16(instructions.encode(), nothing.ctypes, nothing.ctypes, ctypes.c_int64(0)) == 0
