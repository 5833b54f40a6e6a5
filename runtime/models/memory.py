"""Arrays in a device's memory, through ONNX Runtime or another allocator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]

# Elements that an array begins at a multiple of: kernels read many at a time.
_ALIGNMENT = 256


class Placed(Protocol):
    """Array in a device's memory, with the methods of ONNX Runtime's OrtValue."""

    def data_ptr(self) -> int:
        """Address of the array, which stays."""

    def update_inplace(self, array: Array) -> None:
        """Replace the content by that of an array of as many bytes."""

    def numpy(self) -> Array:
        """Copy the content to this process's memory."""


# Places a copy of an array.
Put = Callable[[Array], Placed]


class Memory(Protocol):
    """Memory of a device, where ONNX Runtime does not manage it."""

    def place(self, array: Array) -> Placed:
        """Copy an array to the device."""

    def empty(self, size: int) -> Placed:
        """Allocate bytes, filled with zeros."""

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes from one address to another."""

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Copy rows of `width` bytes that begin `pitch` bytes after each other."""

    def clear(self, address: int, size: int) -> None:
        """Fill bytes with zeros."""


def put(array: Array, device: str) -> Any:
    """Copy an array into an OrtValue in a device's memory, separate memory on the CPU too."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), device, 0)


def read(value: Placed) -> Array:
    """Copy an array's content to this process's memory."""
    return np.array(value.numpy())


def padded(shape: tuple[int, ...]) -> int:
    """Number of elements that an array occupies in memory where others follow it."""
    return -(-int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class _Slot:
    offset: int
    shape: tuple[int, ...]
    dtype: npt.DTypeLike

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Slab:
    """Slab of several arrays in a device's memory: one copy moves them all, and their addresses stay.

    Args:
        layout: Shape and type of each array by name. Arrays of one type follow each other at equal element offsets,
            whatever the type, with zeros between them.
        device: As ONNX Runtime names it.
        place: Puts the memory there; by ONNX Runtime where None.
    """

    def __init__(
        self, layout: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]], device: str, place: Put | None = None
    ) -> None:
        self.layout, self._device = dict(layout), device
        self._slots: dict[str, _Slot] = {}
        end = 0
        for name, (shape, dtype) in layout.items():
            self._slots[name] = _Slot(end, shape, dtype)
            end += padded(shape) * np.dtype(dtype).itemsize
        self._host = np.zeros(end, np.uint8)
        self._value: Placed = place(self._host) if place else put(self._host, device)

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Replace some of the arrays; the others keep their last content."""
        for name, array in arrays.items():
            slot = self._slots[name]
            content = np.ascontiguousarray(array, slot.dtype).reshape(-1).view(np.uint8)
            self._host[slot.offset : slot.offset + len(content)] = content
        self._value.update_inplace(self._host)

    def read(self) -> dict[str, Array]:
        """Copy all arrays to this process's memory."""
        content = read(self._value)
        return {
            name: content[slot.offset : slot.offset + slot.bytes].view(slot.dtype).reshape(slot.shape)
            for name, slot in self._slots.items()
        }

    def bind_input(self, binding: Any, name: str, *, shape: tuple[int, ...] | None = None) -> None:
        """Bind an array to the input of its name; with a shape, the array's first elements in that shape."""
        slot = self._slots[name]
        address = self._value.data_ptr() + slot.offset
        binding.bind_input(name, self._device, 0, slot.dtype, list(shape or slot.shape), address)

    def bind_output(self, binding: Any, name: str) -> None:
        """Bind an array to the output of its name."""
        slot = self._slots[name]
        address = self._value.data_ptr() + slot.offset
        binding.bind_output(name, self._device, 0, slot.dtype, list(slot.shape), address)

    def whole(self, dtype: npt.DTypeLike) -> tuple[str, int, npt.DTypeLike, list[int], int]:
        """Arguments that bind the whole slab, zeros between the arrays included, as one vector of a type."""
        return self._device, 0, dtype, [len(self._host) // np.dtype(dtype).itemsize], self._value.data_ptr()
