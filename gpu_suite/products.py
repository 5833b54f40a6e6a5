"""Products of matrices for calls of many tokens: torch's, which are cuBLAS's on a GPU."""

import ctypes
import traceback
from typing import Any

import torch

from gpu_suite.calls import ELEMENTS, MULTIPLY, Products
from gpu_suite.device import Device

# cudaErrorUnknown: what a product that failed returns.
_FAILED = 999


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
