"""Activation functions of the feed-forward ops: each with its float64 reference and its ONNX statements."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clada.ops.record import Array


@dataclass(frozen=True)
class Activation:
    """One activation.

    Args:
        reference: float64 array to float64 array.
        onnx: Statements in ONNX's textual syntax that read `z` (float32) and write `a`.
    """

    reference: Callable[[Array], Array]
    onnx: str


_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(
        reference=lambda z: z / (1 + np.exp(-z)),
        onnx="""
            z_sigmoid = Sigmoid (z)
            a = Mul (z, z_sigmoid)
        """,
    ),
    "gelu": Activation(
        reference=lambda z: 0.5 * z * (1 + _erf(z / math.sqrt(2))),
        onnx=f"""
            inverse_root = Constant <value_float = {1 / math.sqrt(2)!r}> ()
            half = Constant <value_float = 0.5> ()
            unit = Constant <value_float = 1.0> ()
            z_scaled = Mul (z, inverse_root)
            z_erf = Erf (z_scaled)
            z_cdf = Add (z_erf, unit)
            z_half = Mul (z, half)
            a = Mul (z_half, z_cdf)
        """,
    ),
    "gelu_tanh": Activation(
        reference=lambda z: 0.5 * z * (1 + np.tanh(_SQRT_2_OVER_PI * (z + 0.044715 * z**3))),
        onnx=f"""
            root = Constant <value_float = {_SQRT_2_OVER_PI!r}> ()
            cubic = Constant <value_float = 0.044715> ()
            half = Constant <value_float = 0.5> ()
            unit = Constant <value_float = 1.0> ()
            z_squared = Mul (z, z)
            z_cubic = Mul (z_squared, cubic)
            z_slope = Add (z_cubic, unit)
            z_inner = Mul (z, z_slope)
            z_scaled = Mul (z_inner, root)
            z_tanh = Tanh (z_scaled)
            z_cdf = Add (z_tanh, unit)
            z_half = Mul (z, half)
            a = Mul (z_half, z_cdf)
        """,
    ),
    "relu": Activation(
        reference=lambda z: np.maximum(z, 0),
        onnx="""
            a = Relu (z)
        """,
    ),
}
