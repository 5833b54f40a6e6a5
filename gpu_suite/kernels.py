"""Library of the kernels: every op's launcher, called with tensors."""

import ctypes
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clada.errors import CladaError
from clada.ops import LOAD_SIGNAL, QUANTIZED_LINEAR, SPARSE_LINEAR
from clada.ops.record import Op
from gpu_suite.calls import ELEMENTS, MULTIPLY, Products, axis_sizes, op_call
from gpu_suite.device import Device, GuardedMemory

# cudaErrorUnknown: what a product that failed returns.
_FAILED = 999


@dataclass(frozen=True)
class Kernels:
    """The C interface of the kernels (plugins/kernels/cuda/c_interface.cpp).

    Args:
        library: Loaded.
        device: Device of its pointers.
        products: Matrix products of its kernels.
        rowwise_tokens: Up to this many tokens it skips what is not kept.
    """

    library: ctypes.CDLL
    device: Device
    products: Any
    rowwise_tokens: int

    def call(self, op: Op, inputs: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float]) -> "Call":
        """Prepare a call of an op."""
        return Call(self, op, inputs, attributes)


def load(path: Path, device: Device) -> Kernels:
    """Load a library.

    Raises:
        CladaError: It does not load or has not all functions.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name in ("sparse_ffn", "sparse_linear", "load_signal"):
            getattr(library, f"clada_cuda_{name}_workspace").restype = ctypes.c_size_t
            getattr(library, f"clada_cuda_{name}").restype = ctypes.c_int
        library.clada_cuda_error_text.restype = ctypes.c_char_p
        library.clada_cuda_rowwise_tokens.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        raise CladaError(f"the library of kernels {path} cannot be used: {error}") from error
    return Kernels(library, device, torch_products(device), library.clada_cuda_rowwise_tokens())


def _functions(op: Op) -> str:
    """Names of the C functions of an op, but for their endings."""
    if op is LOAD_SIGNAL:
        return "clada_cuda_load_signal"
    return f"clada_cuda_sparse_{'linear' if op in (SPARSE_LINEAR, QUANTIZED_LINEAR) else 'ffn'}"


class Call:
    """Prepared call of an op: launching it again costs no more than the launch.

    Args:
        kernels: The library.
        op: The op.
        inputs: Contiguous tensors of the library's device, by the record's names.
        attributes: By name.
    """

    def __init__(
        self, kernels: Kernels, op: Op, inputs: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float]
    ) -> None:
        self._kernels, self._op, self._inputs = kernels, op, dict(inputs)
        sizes = axis_sizes(op, {name: tensor.shape for name, tensor in inputs.items()}, attributes)
        dtype = inputs[op.inputs[0].name].dtype
        self._memory = GuardedMemory(kernels.device.name)
        self.outputs = {
            spec.name: self._memory.tensor(
                [sizes[axis] for axis in spec.axes], dtype if spec.dtype == "T" else getattr(torch, spec.dtype)
            )
            for spec in op.outputs
        }
        addresses = {name: tensor.data_ptr() for name, tensor in (self._inputs | self.outputs).items()}
        self._call = op_call(op, sizes, attributes, addresses, str(dtype).removeprefix("torch."))
        name = _functions(op)
        size_of, self._launch = (getattr(kernels.library, f"{name}{end}") for end in ("_workspace", ""))
        many = "S" in sizes and sizes["B"] * sizes["S"] > kernels.rowwise_tokens
        products = [] if op is LOAD_SIGNAL else [ctypes.byref(kernels.products) if many else None]
        self._workspace = self._memory.tensor([size_of(ctypes.byref(self._call))], torch.uint8)
        self._arguments = (
            *(ctypes.byref(self._call), ctypes.c_void_p(self._workspace.data_ptr())),
            *products,
        )

    def launch(self) -> None:
        """Launch it on torch's current stream.

        Raises:
            CladaError: The launch failed.
        """
        result = self._launch(*self._arguments, ctypes.c_void_p(self._kernels.device.stream()))
        if result:
            text = self._kernels.library.clada_cuda_error_text(result).decode()
            raise CladaError(f"{self._op.name} cannot be launched: {text} (CUDA error {result})")

    def poison(self) -> None:
        """Fill outputs and workspace with NaN, so that elements that are not written are detected."""
        self._memory.poison()

    def written_outside(self) -> bool:
        """Whether memory around outputs and workspace was changed."""
        return bool(self._memory.damage())


def torch_products(device: Device) -> Products:
    """Products that the kernels can call; they run on torch's current stream, which must be that of the call."""

    def matrix(address: int, rows: int, columns: int, dtype: torch.dtype, row: int | None = None) -> torch.Tensor:
        row = columns if row is None else row
        elements = (rows - 1) * row + columns
        return device.at(address, elements * dtype.itemsize).view(dtype).as_strided((rows, columns), (row, 1))

    def multiply(_library: Any, pointer: Any, _stream: Any) -> int:
        product = pointer.contents
        m, n, k = product.m, product.n, product.k
        try:
            dtype = getattr(torch, ELEMENTS[product.element])
            a, c = matrix(product.a, m, k, dtype), matrix(product.c, m, n, dtype, product.c_row)
            b = matrix(product.b, n, k, dtype).T if product.transposed_b else matrix(product.b, k, n, dtype)
            torch.mm(a, b, out=c)
        except Exception:
            # C++ cannot carry it further.
            traceback.print_exc()
            return _FAILED
        return 0

    return Products(ctypes.c_void_p(), MULTIPLY(multiply))
