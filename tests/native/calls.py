"""The kernels' calls over NumPy arrays whose surroundings are watched."""

import contextlib
import ctypes
from collections.abc import Iterator, Mapping

import numpy as np

from clada.ops import QUANTIZED_LINEAR, SPARSE_LINEAR
from clada.ops.record import Array, Op
from gpu_suite.calls import OpCall, axis_sizes, op_call
from gpu_suite.device import POISON, GuardedMemory

_process = ctypes.CDLL(None)


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


class GuardedArrays(GuardedMemory):
    """NumPy arrays in guarded memory, at least `offset` bytes past a boundary."""

    def __init__(self, offset: int) -> None:
        super().__init__("cpu")
        self._offset = offset

    def place(self, array: Array, boundary: int = 64) -> Array:
        """A copy of an array; one at a larger boundary than a cache line lies exactly there."""
        array = np.ascontiguousarray(array)
        offset = -(-self._offset // array.itemsize) * array.itemsize if boundary == 64 else 0
        block, start = self.reserve(array.nbytes, boundary, offset)
        inside = block.numpy()[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        inside[...] = array
        return inside

    def place_unset(self, shape: tuple[int, ...], dtype: str, boundary: int = 64, fill: int = POISON) -> Array:
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
        damage = self.damage()
        assert not damage, damage

    def _tell_sanitizer(self, function: str) -> None:
        tell = getattr(_process, function, None)
        for before, after in self.surroundings() if tell else ():
            # What the sanitizer knows of 8 bytes is how many of the first are whole.
            for address, size in ((before.data_ptr(), len(before) // 8 * 8), (after.data_ptr(), len(after))):
                tell(ctypes.c_void_p(address), ctypes.c_size_t(size))


def place_call(
    memory: GuardedArrays,
    op: Op,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, str | float],
    element: str,
    weight_element: str,
) -> tuple[OpCall, list[Array]]:
    """Place an op's arrays.

    Args:
        memory: Memory to place them in.
        op: The op.
        inputs: As of a case of the op.
        attributes: As of a case of the op.
        element: Type T, but of weight matrices.
        weight_element: Type of the weight matrices, where they are not quantized.

    Returns:
        The call, and the outputs to be written; bits where bfloat16.
    """
    placed = {}
    for spec in op.inputs:
        array = inputs[spec.name]
        if spec.dtype == "T":
            array = to_element(array, weight_element if spec.role == "matrix" else element)
        placed[spec.name] = memory.place(array)
    sizes = axis_sizes(op, {name: array.shape for name, array in inputs.items()}, attributes)
    stored = "uint16" if element == "bfloat16" else element
    outputs = {
        spec.name: memory.place_unset(
            tuple(sizes[axis] for axis in spec.axes), stored if spec.dtype == "T" else spec.dtype
        )
        for spec in op.outputs
    }
    addresses = {name: array.ctypes.data for name, array in (placed | outputs).items()}
    return op_call(op, sizes, attributes, addresses, element, weight_element), list(outputs.values())


def place_linear_call(
    memory: GuardedArrays,
    inputs: Mapping[str, Array],
    element: str,
    weight_element: str,
    quantization: tuple[int, int] | None = None,
) -> tuple[OpCall, list[Array]]:
    """Place the arrays of SparseLinear, or, with bits and a block size, of its quantized variant."""
    op = QUANTIZED_LINEAR if quantization else SPARSE_LINEAR
    attributes = dict(zip(("bits", "block_size"), quantization or (), strict=False))
    return place_call(memory, op, inputs, attributes, element, weight_element)
