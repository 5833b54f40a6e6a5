"""One feed-forward layer as a graph: random weights, our op, and thresholds that keep an exact share of it."""

import numpy as np
import onnx_ir

from clada.benchmark.shapes import Shape
from clada.benchmark.storage import initializer
from clada.exporter.trace import DEFAULT_OPSET
from clada.plugins.onnx import function_proto
from clada.plugins.ops import DOMAIN, PLUGIN_ATTRIBUTES, SPARSE_GATED_FFN, VERSION
from clada.plugins.ops.activations import ACTIVATIONS
from clada.plugins.ops.record import Array

_ATTRIBUTES = {"activation": "silu"}


def random_weights(shape: Shape) -> dict[str, Array]:
    """The op's weights by input name, f32[F, D], scaled so that activations are of the order of 1."""
    generator = np.random.default_rng(0)
    weights = {}
    for name in ("w_gate", "w_up", "w_down"):
        weights[name] = generator.standard_normal((shape.neurons, shape.hidden), np.float32)
        weights[name] /= np.float32(np.sqrt(shape.hidden))
    return weights


def random_input(hidden: int, tokens: int) -> Array:
    """Tokens f32[1, S, D]."""
    return np.random.default_rng(1).standard_normal((1, tokens, hidden), np.float32)


def layer_model(weights: dict[str, Array]) -> onnx_ir.Model:
    """The op alone, its weights constant, batch 1; thresholds are an input, so that one session serves all shares."""
    values = {}
    for spec in SPARSE_GATED_FFN.inputs:
        if spec.name in weights:
            values[spec.name] = initializer(spec.name, onnx_ir.tensor(weights[spec.name]))
            continue
        neurons, hidden = weights["w_gate"].shape
        sizes: dict[str, int | str] = {"B": 1, "S": "sequence_length", "D": hidden, "F": neurons}
        dtype = onnx_ir.DataType.BOOL if spec.dtype == "bool" else onnx_ir.DataType.FLOAT
        values[spec.name] = onnx_ir.Value(
            name=spec.name, shape=onnx_ir.Shape([sizes[axis] for axis in spec.axes]), type=onnx_ir.TensorType(dtype)
        )
    node = onnx_ir.node(
        SPARSE_GATED_FFN.name,
        list(values.values()),
        {**_ATTRIBUTES, **PLUGIN_ATTRIBUTES},
        domain=DOMAIN,
        num_outputs=len(SPARSE_GATED_FFN.outputs),
    )
    for value, spec in zip(node.outputs, SPARSE_GATED_FFN.outputs, strict=True):
        value.name = spec.name
        value.type = onnx_ir.TensorType(onnx_ir.DataType.INT32 if spec.dtype == "int32" else onnx_ir.DataType.FLOAT)
    graph = onnx_ir.Graph(
        [value for name, value in values.items() if name not in weights],
        node.outputs,
        nodes=[node],
        initializers=[values[name] for name in weights],
        opset_imports={"": DEFAULT_OPSET, DOMAIN: VERSION},
        name="layer",
    )
    function = onnx_ir.serde.deserialize_function(function_proto(SPARSE_GATED_FFN, _ATTRIBUTES, DEFAULT_OPSET))
    return onnx_ir.Model(graph, ir_version=10, functions=[function])


def exact_threshold(weights: dict[str, Array], x: Array, fraction: float) -> Array:
    """Thresholds f32[F] that keep exactly the share of neurons with the largest activations, for one token x.

    They lie a factor of 2 away from the cut, each on its neuron's far side, so that the rounding of no precision
    moves a neuron across.
    """
    product = weights["w_gate"].astype(np.float64) @ x.reshape(-1).astype(np.float64)
    magnitude = np.abs(ACTIVATIONS[_ATTRIBUTES["activation"]].reference(product))
    ordered = np.append(np.sort(magnitude)[::-1], 0.0)
    kept = round(fraction * len(magnitude))
    cut = (ordered[max(kept, 1) - 1] + ordered[kept]) / 2
    return np.where(magnitude > cut, cut / 2, 2 * cut).astype(np.float32)
