"""The kernels' calls as C structures over NumPy arrays whose surroundings are watched."""

import contextlib
import ctypes
from collections.abc import Iterator, Mapping

import numpy as np

from clada.ops import LOAD_SIGNAL, QUANTIZED_LINEAR
from clada.ops.activations import ACTIVATIONS
from clada.ops.quantized_matrices import scales_name
from clada.ops.record import Array, Op

ELEMENTS = ("float32", "float16", "bfloat16")
SENTINEL = 0xA5
MARGIN = 192

_FFN_MATRICES = ("w_in", "w_up", "w_out")
_FFN_SCALES = ("s_in", "s_up", "s_out")
_FFN_OTHERS = ("b_in", "b_out", "threshold", "scale", "pool", "y", "active", "score")
_process = ctypes.CDLL(None)


class SparseFfnCall(ctypes.Structure):
    """SparseFfnCall of plugins/kernels/calls.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("batch", "sequence", "width", "neurons")]
        + [(name, ctypes.c_int) for name in ("activation", "element", "weight_element", "bits", "block_size")]
        + [(name, ctypes.c_void_p) for name in ("x", *_FFN_MATRICES, *_FFN_SCALES, *_FFN_OTHERS)]
    )


class SparseLinearCall(ctypes.Structure):
    """SparseLinearCall of plugins/kernels/calls.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("batch", "sequence", "width", "outputs")]
        + [(name, ctypes.c_int) for name in ("element", "weight_element", "bits", "block_size")]
        + [(spec.name, ctypes.c_void_p) for spec in (*QUANTIZED_LINEAR.inputs, *QUANTIZED_LINEAR.outputs)]
    )


class LoadSignalCall(ctypes.Structure):
    """LoadSignalCall of plugins/kernels/calls.h."""

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


class GuardedMemory:
    """Arrays in exactly as much memory as they need, at least `offset` bytes past a boundary, between sentinels."""

    def __init__(self, offset: int) -> None:
        self._offset, self._blocks = offset, []

    def place(self, array: Array, boundary: int = 64) -> Array:
        """A copy of an array; one at a larger boundary than a cache line lies exactly there."""
        array = np.ascontiguousarray(array)
        block = np.full(2 * MARGIN + boundary + array.nbytes, SENTINEL, np.uint8)
        start = MARGIN + -(block.ctypes.data + MARGIN) % boundary
        if boundary == 64:
            start += -(-self._offset // array.itemsize) * array.itemsize
        inside = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        inside[...] = array
        self._blocks.append((block, start, array.nbytes))
        return inside

    def place_unset(self, shape: tuple[int, ...], dtype: str, boundary: int = 64, fill: int = 0xFF) -> Array:
        """Filled with a byte; the default one makes NaN and -1."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.place(np.full(size, fill, np.uint8).view(dtype).reshape(shape), boundary)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within, the address sanitizer stops reads and writes outside of the arrays; after, writes are looked for."""
        self._tell_sanitizer("__asan_poison_memory_region")
        try:
            yield
        finally:
            self._tell_sanitizer("__asan_unpoison_memory_region")
        for block, start, size in self._blocks:
            assert (block[:start] == SENTINEL).all(), "written before the beginning"
            assert (block[start + size :] == SENTINEL).all(), "written past the end"

    def _tell_sanitizer(self, function: str) -> None:
        tell = getattr(_process, function, None)
        for block, start, size in self._blocks if tell else ():
            for first, end in ((0, start // 8 * 8), (start + size, block.size)):
                tell(ctypes.c_void_p(block.ctypes.data + first), ctypes.c_size_t(end - first))


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def place_ffn_call(
    memory: GuardedMemory,
    op: Op,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, str | float],
    element: str,
    weight_element: str,
) -> tuple[SparseFfnCall, list[Array]]:
    """Place a feed-forward op's arrays.

    Args:
        memory: Where to.
        op: A feed-forward op.
        inputs: As of a case of the op.
        attributes: As of a case of the op.
        element: Type of x, the biases and y.
        weight_element: Type of the weight matrices, where they are not quantised.

    Returns:
        The call, and y (bits where bfloat16), active and score to be written.
    """
    placed = {}
    for name, array in inputs.items():
        if name.startswith("w_") and "bits" not in attributes:
            array = to_element(array, weight_element)
        elif name == "x" or name.startswith("b_"):
            array = to_element(array, element)
        placed[name] = memory.place(array)
    batch, sequence, width = inputs["x"].shape
    neurons = inputs["threshold"].shape[0]
    outputs = [
        memory.place_unset((batch, sequence, width), "uint16" if element == "bfloat16" else element),
        memory.place_unset((batch, sequence), "int32"),
        memory.place_unset((batch, neurons), "float32"),
    ]
    names = [spec.name for spec in op.inputs]
    w_in, w_out = ("w_gate", "w_down") if "w_gate" in names else ("w_in", "w_out")
    matrices = [w_in, "w_up", w_out]
    call = SparseFfnCall(
        *(batch, sequence, width, neurons, list(ACTIVATIONS).index(str(attributes["activation"]))),
        *(ELEMENTS.index(element), ELEMENTS.index(weight_element)),
        *(int(attributes.get(name, 0)) for name in ("bits", "block_size")),
        *(_address(placed.get(name)) for name in ("x", *matrices, *map(scales_name, matrices), "b_in", "b_out")),
        *(_address(array) for array in (placed["threshold"], placed["scale"], placed["pool"], *outputs)),
    )
    return call, outputs


def place_linear_call(
    memory: GuardedMemory,
    inputs: Mapping[str, Array],
    element: str,
    weight_element: str,
    quantization: tuple[int, int] | None = None,
) -> tuple[SparseLinearCall, list[Array]]:
    """Place the arrays of SparseLinear, or of its quantised variant.

    Args:
        memory: Where to.
        inputs: As of a case of the op.
        element: Type of x and y.
        weight_element: Type of w, where it is not quantised.
        quantization: Bits and block size.

    Returns:
        The call, and y (bits where bfloat16) and kept to be written.
    """
    types = {"x": element} if quantization else {"x": element, "w": weight_element}
    placed = {name: memory.place(to_element(a, types[name]) if name in types else a) for name, a in inputs.items()}
    batch, sequence, width = inputs["x"].shape
    columns = inputs["w"].shape[1] * 8 // quantization[0] if quantization else inputs["w"].shape[1]
    outputs = [
        memory.place_unset((batch, sequence, columns), "uint16" if element == "bfloat16" else element),
        memory.place_unset((batch, sequence), "int32"),
    ]
    call = SparseLinearCall(
        *(batch, sequence, width, columns, ELEMENTS.index(element), ELEMENTS.index(weight_element)),
        *(quantization or (0, 0)),
        *(_address(placed.get(spec.name)) for spec in QUANTIZED_LINEAR.inputs),
        *map(_address, outputs),
    )
    return call, outputs


def place_load_signal_call(
    memory: GuardedMemory, inputs: Mapping[str, Array], surprisal_weight: float, element: str
) -> tuple[LoadSignalCall, list[Array]]:
    """Place LoadSignal's arrays; returns the call and the outputs to be written."""
    placed = {name: memory.place(to_element(a, element) if name == "logits" else a) for name, a in inputs.items()}
    batch, vocabulary = inputs["logits"].shape
    outputs = [memory.place_unset((batch,), "float32") for _ in LOAD_SIGNAL.outputs]
    call = LoadSignalCall(
        *(batch, vocabulary, len(inputs["surprisal_knots"]), len(inputs["scale_knots"])),
        *(surprisal_weight, ELEMENTS.index(element)),
        *(_address(placed[spec.name]) for spec in LOAD_SIGNAL.inputs),
        *map(_address, outputs),
    )
    return call, outputs
