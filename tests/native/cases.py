"""Cases for the kernels, and how near to the float64 reference their outputs have to be."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pytest

from clada.ops import (
    OPS,
    QUANTIZED,
    QUANTIZED_FFN,
    QUANTIZED_LINEAR,
    SPARSE_FFN,
    SPARSE_GATED_FFN,
    SPARSE_LINEAR,
)
from clada.ops.activations import ACTIVATIONS
from clada.ops.block_quantization import dequantize, quantize
from clada.ops.quantized_matrices import scales_name
from clada.ops.record import Array, Case, Op, evaluate
from clada.ops.thresholds import tie_free_threshold
from tests.native.calls import rounded

FFN_CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in (SPARSE_GATED_FFN, SPARSE_FFN) for case in op.cases()
]
QUANTIZED_FFN_CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in QUANTIZED_FFN.values() for case in op.cases()
]
LINEAR_CASES, QUANTIZED_LINEAR_CASES = (
    [pytest.param(op, case, id=f"{op.name}-{case.name}") for case in op.cases()]
    for op in (SPARSE_LINEAR, QUANTIZED_LINEAR)
)


def rounded_case(case: Case, element: str, weight_element: str) -> Case:
    """The case with the values that are left in the elements' types; quantized weights are as they are."""
    inputs = dict(case.inputs)
    for name, array in inputs.items():
        if (name == "w" or name.startswith("w_")) and array.dtype != np.int8:
            inputs[name] = rounded(array, weight_element)
        elif name in ("x", "logits") or name.startswith("b_"):
            inputs[name] = rounded(array, element)
    return dataclasses.replace(case, inputs=inputs)


def large_case(
    op: Op,
    batch: int,
    sequence: int,
    width: int,
    neurons: int,
    seed: int = 0,
    element: str = "float32",
    quantization: tuple[int, int] | None = None,
) -> Case:
    """Sizes past every block of the kernels, or 0, each sequence with a pool and an active set of its own, no ties.

    Values are such that `element` holds them exactly. Bits and block size of the weights make it a case of the op's
    quantized variant. Its arrays are the caller's own.
    """
    made = _large_case(op.name, batch, sequence, width, neurons, seed, element, quantization)
    return dataclasses.replace(made, inputs={name: array.copy() for name, array in made.inputs.items()})


@functools.lru_cache(maxsize=16)  # one after another, the instruction sets are given the same case
def _large_case(
    name: str,
    batch: int,
    sequence: int,
    width: int,
    neurons: int,
    seed: int,
    element: str,
    quantization: tuple[int, int] | None,
) -> Case:
    op = OPS[name]
    rng = np.random.default_rng([seed, batch, sequence, width, neurons])
    x = rng.standard_normal((batch, sequence, width)).astype(np.float32)
    weights = [
        (rng.standard_normal((neurons, width)) / np.sqrt(max(1, width))).astype(np.float32)
        for spec in op.inputs
        if spec.name.startswith("w_")
    ]
    names = [spec.name for spec in op.inputs if spec.name.startswith("w_")]
    inputs = {"x": x, **dict(zip(names, weights, strict=True))}
    if any(spec.name == "b_in" for spec in op.inputs):
        inputs["b_in"] = rng.standard_normal(neurons).astype(np.float32) / 4
        inputs["b_out"] = rng.standard_normal(width).astype(np.float32) / 4
    inputs = {name: rounded(array, element).astype(np.float32) for name, array in inputs.items()}
    packed: dict[str, Array] = {}
    for name in names if quantization else ():
        packed[name], packed[scales_name(name)] = quantize(inputs[name], *quantization)
        inputs[name] = dequantize(packed[name], packed[scales_name(name)].astype(np.float32), quantization[0])
    # Products with quantized weights may be of an x in 16 bits.
    distance_needed = 1e-3 if quantization else 1e-5
    scale = rng.choice(np.float32([0.0, 0.5, 1.0, -1.0]), (batch, sequence), p=[0.2, 0.3, 0.4, 0.1])
    scale[:1, :1] = 1.0
    z = inputs["x"].astype(np.float64) @ inputs[names[0]].astype(np.float64).T + inputs.get("b_in", 0)
    magnitude = np.abs(ACTIVATIONS["silu"].reference(z))
    # A threshold that no |a| / scale of any token is near to.
    threshold = rng.uniform(0.1, 0.5, neurons).astype(np.float32)
    for _ in range(100):
        distance = np.abs(magnitude - scale[..., None] * threshold)[scale > 0]
        near = (distance < distance_needed).any(axis=0)
        if not near.any():
            break
        threshold[near] = rng.uniform(0.1, 0.5, near.sum())
    assert not near.any()
    inputs |= {"threshold": threshold, "scale": scale, "pool": rng.random((batch, neurons)) < 0.7, **packed}
    attributes = dict(zip(("bits", "block_size"), quantization or (), strict=False))
    return Case("large", inputs, {**attributes, "activation": "silu"})


def large_linear_case(
    batch: int,
    sequence: int,
    width: int,
    outputs: int,
    seed: int = 0,
    element: str = "float32",
    quantization: tuple[int, int] | None = None,
) -> Case:
    """The same of SparseLinear: each token with a scale of its own, 0 and padding among them."""
    rng = np.random.default_rng([seed, batch, sequence, width, outputs])
    scale = rng.choice(np.float32([0.0, 0.5, 1.0, -1.0]), (batch, sequence), p=[0.2, 0.3, 0.4, 0.1])
    scale[:1, :1] = 1.0
    scale[1:, :1] = -1.0
    x = rounded(rng.standard_normal((batch, sequence, width)), element)
    w = rounded(rng.standard_normal((width, outputs)) / np.sqrt(max(1, width)), element)
    weights = dict(zip("ws", quantize(w, *quantization), strict=True)) if quantization else {"w": w}
    inputs = {"x": x, **weights, "threshold": tie_free_threshold(x, scale, rng), "scale": scale}
    return Case("large", inputs, dict(zip(("bits", "block_size"), quantization or (), strict=False)))


def sized_case(op: Op, batch: int, sequence: int, width: int, rows: int, element: str = "float32") -> Case:
    """The same for any op with a batch and a sequence; `rows` are neurons, or outputs, quantized ones in blocks."""
    quantization = (4, 32) if op in QUANTIZED.values() else None
    if op in (SPARSE_LINEAR, QUANTIZED_LINEAR):
        outputs = rows * quantization[1] if quantization else rows
        return large_linear_case(batch, sequence, width, outputs, element=element, quantization=quantization)
    return large_case(op, batch, sequence, width, rows, element=element, quantization=quantization)


def dense_case(case: Case) -> Case:
    """The case with nothing to select by, for where rounding would move activations across thresholds."""
    selection = {"scale": np.minimum(case.inputs["scale"], 0), "threshold": 0 * case.inputs["threshold"]}
    return dataclasses.replace(case, inputs={**case.inputs, **selection})


def check_outputs(op: Op, case: Case, outputs: Sequence[Array], element: str, rounded_products: bool = False) -> None:
    """Compare an op's outputs with the reference: counts exactly, the rest by the op's tolerance.

    Sums are in float32 whatever the weights are in. Only y is rounded to the element type, and, where products are made
    by a library, they, on which the score rests.
    """
    for spec, out, expected in zip(op.outputs, outputs, evaluate(op, case), strict=True):
        if spec.dtype == "int32":
            np.testing.assert_array_equal(out, expected)
            continue
        tolerance = op.tolerance[element if spec.dtype == "T" or rounded_products else "float32"]
        assert out.shape == expected.shape, spec.name
        bound = tolerance * np.abs(expected).max(initial=0)
        assert np.abs(out - expected).max(initial=0) <= bound, spec.name
