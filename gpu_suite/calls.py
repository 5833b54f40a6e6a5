"""The structures of plugins/kernels/calls.h and launchers.h for ctypes, and a call of any op in them."""

import ctypes
from collections.abc import Mapping, Sequence

from clada.ops import LOAD_SIGNAL, QUANTIZED_LINEAR, SPARSE_LINEAR
from clada.ops.activations import ACTIVATIONS
from clada.ops.record import FLOAT_TYPES, Op

# In the order of C++'s enum Element.
ELEMENTS = FLOAT_TYPES
_FFN_INPUTS = ("x", "w_in", "w_up", "w_out", "s_in", "s_up", "s_out", "b_in", "b_out", "threshold", "scale", "pool")
_FFN_POINTERS = (*_FFN_INPUTS, "y", "active", "score")
_LINEAR_POINTERS = [spec.name for spec in (*QUANTIZED_LINEAR.inputs, *QUANTIZED_LINEAR.outputs)]
_LOAD_SIGNAL_POINTERS = [spec.name for spec in (*LOAD_SIGNAL.inputs, *LOAD_SIGNAL.outputs)]
# The names that a feed-forward call has for inputs of the gated op.
_FFN_NAMES = {"w_gate": "w_in", "w_down": "w_out", "s_gate": "s_in", "s_down": "s_out"}


class SparseFfnCall(ctypes.Structure):
    """One call of a feed-forward op."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("batch", "sequence", "width", "neurons")]
        + [(name, ctypes.c_int) for name in ("activation", "element", "weight_element", "bits", "block_size")]
        + [(name, ctypes.c_void_p) for name in _FFN_POINTERS]
    )


class SparseLinearCall(ctypes.Structure):
    """One call of SparseLinear or of its quantized variant."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("batch", "sequence", "width", "outputs")]
        + [(name, ctypes.c_int) for name in ("element", "weight_element", "bits", "block_size")]
        + [(name, ctypes.c_void_p) for name in _LINEAR_POINTERS]
        + [("byte_factors", ctypes.c_bool)]
    )


class LoadSignalCall(ctypes.Structure):
    """One call of LoadSignal."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "vocabulary", "knots", "scale_knots_count")),
        ("surprisal_weight", ctypes.c_float),
        ("element", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in _LOAD_SIGNAL_POINTERS),
    )


OpCall = SparseFfnCall | SparseLinearCall | LoadSignalCall


def axis_sizes(op: Op, shapes: Mapping[str, Sequence[int]], attributes: Mapping[str, str | float]) -> dict[str, int]:
    """The size of every axis of an op by name, given its inputs' shapes."""
    sizes = {axis: size for spec in op.inputs for axis, size in zip(spec.axes, shapes[spec.name], strict=True)}
    return {**sizes, **op.output_sizes(sizes, attributes)}


def op_call(
    op: Op,
    sizes: Mapping[str, int],
    attributes: Mapping[str, str | float],
    addresses: Mapping[str, int],
    element: str,
    weight_element: str | None = None,
) -> OpCall:
    """One call of an op.

    Args:
        op: The op.
        sizes: Of its axes.
        attributes: Of the op.
        addresses: Of its inputs and outputs, by the record's names.
        element: Type T.
        weight_element: Type of weight matrices that are not quantized, where it is not T.
    """
    if op is LOAD_SIGNAL:
        weight = float(attributes["surprisal_weight"])
        return LoadSignalCall(*(sizes[axis] for axis in "BVKM"), weight, ELEMENTS.index(element), **addresses)
    types = (ELEMENTS.index(element), ELEMENTS.index(weight_element or element))
    quantization = [int(attributes.get(name, 0)) for name in ("bits", "block_size")]
    if op in (SPARSE_LINEAR, QUANTIZED_LINEAR):
        return SparseLinearCall(*(sizes[axis] for axis in "BSDN"), *types, *quantization, **addresses)
    activation = list(ACTIVATIONS).index(str(attributes["activation"]))
    named = {_FFN_NAMES.get(name, name): address for name, address in addresses.items()}
    return SparseFfnCall(*(sizes[axis] for axis in "BSDF"), activation, *types, *quantization, **named)


class Product(ctypes.Structure):
    """c[m, n] = a[m, k] . b, the rows of c starting c_row elements apart."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("m", "n", "k")),
        ("element", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
        ("c_row", ctypes.c_int64),
        ("transposed_b", ctypes.c_bool),
    )


MULTIPLY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Product), ctypes.c_void_p)


class Products(ctypes.Structure):
    """Matrix products that the kernels call."""

    _fields_ = [("library", ctypes.c_void_p), ("multiply", MULTIPLY)]
