"""Kernels of the ops that CPUs alone have, called with NumPy arrays whose surroundings are watched."""

import ctypes
from collections.abc import Mapping

from clada.ops import CACHED_ATTENTION
from clada.ops.activations import ACTIVATIONS
from clada.ops.record import FLOAT_TYPES, Array
from tests.native.calls import GuardedArrays, from_element, to_element
from tests.native.kernels_c import LIBRARY


class CachedAttentionCall(ctypes.Structure):
    """The structure of plugins/kernels/calls.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sequence", "heads", "kv_heads", "width", "capacity", "rotary")),
        ("interleaved", ctypes.c_bool),
        ("last", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int64),
        ("element", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "past_key", "past_value")),
        *((spec.name, ctypes.c_void_p) for spec in CACHED_ATTENTION.outputs),
    )


def cached_attention(
    inputs: Mapping[str, Array],
    attributes: Mapping[str, str | float],
    *,
    instructions: str,
    threads: int = 1,
    element: str = "float32",
    offset: int = 0,
    in_place: bool = True,
) -> list[Array]:
    """Call the kernel.

    Args:
        inputs: As of a case of the op.
        attributes: As of a case of the op.
        instructions: The instruction set.
        threads: Number of threads to spread the work over.
        element: Type of all tensors.
        offset: Bytes by which every array is off a cache line.
        in_place: Have the new cache be the memory of the old one.

    Returns:
        The outputs in float64.
    """
    memory = GuardedArrays(offset)
    stored = "uint16" if element == "bfloat16" else element
    names = ("qkv", "cos", "sin", "past_key", "past_value")
    given = {name: memory.place(to_element(inputs[name], element)) for name in names}
    _, kv_heads, capacity, width = inputs["past_key"].shape
    length, heads = inputs["qkv"].shape[1], int(attributes["num_heads"])
    out = {"y": memory.place_unset((1, length, heads * width), stored)}
    for name in ("key", "value"):
        past = given[f"past_{name}"]
        out[f"present_{name}"] = past if in_place else memory.place_unset(past.shape, stored)
    call = CachedAttentionCall(
        sequence=length,
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        capacity=capacity,
        rotary=int(attributes["rotary_embedding_dim"]) // 2,
        interleaved=attributes["rotary"] == "interleaved",
        last=int(inputs["last"][0]),
        scale=attributes["scale"],
        softcap=attributes["softcap"],
        window=int(attributes["local_window_size"]),
        element=FLOAT_TYPES.index(element),
        **{name: array.ctypes.data for name, array in (given | out).items()},
    )
    with memory.watched():
        assert LIBRARY.test_cached_attention(instructions.encode(), threads, ctypes.byref(call)) == 0
    return [from_element(array, element) for array in out.values()]


class GatedActivationCall(ctypes.Structure):
    """The structure of plugins/kernels/calls.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "width")),
        *((name, ctypes.c_int) for name in ("activation", "element")),
        *((name, ctypes.c_void_p) for name in ("x", "y")),
    )


def gated_activation(
    x: Array, activation: str, *, instructions: str, threads: int = 1, element: str = "float32", offset: int = 0
) -> Array:
    """Call the kernel for x [B, S, 2 * F]; other arguments as of `cached_attention`; returns y in float64."""
    memory = GuardedArrays(offset)
    batch, length, width = x.shape[0], x.shape[1], x.shape[2] // 2
    given = memory.place(to_element(x, element))
    y = memory.place_unset((batch, length, width), "uint16" if element == "bfloat16" else element)
    call = GatedActivationCall(
        tokens=batch * length,
        width=width,
        activation=list(ACTIVATIONS).index(activation),
        element=FLOAT_TYPES.index(element),
        x=given.ctypes.data,
        y=y.ctypes.data,
    )
    with memory.watched():
        assert LIBRARY.test_gated_activation(instructions.encode(), threads, ctypes.byref(call)) == 0
    return from_element(y, element)
