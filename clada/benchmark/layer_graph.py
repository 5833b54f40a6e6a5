"""Graph of one feed-forward layer: random weights, our op, and thresholds that keep an exact share of neurons.

The graph holds the layer several times over, each with weights of its own in memory, as a model has one layer after
the other: its weights come from memory and not from a cache, and threads do not wake up for it alone.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir

from clada.benchmark.exact_thresholds import exact_share
from clada.benchmark.layer_output import ACTIVATION
from clada.benchmark.shapes import Shape
from clada.benchmark.storage import initializer
from clada.exporter.defaults import DEFAULT_OPSET
from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, SPARSE_GATED_FFN, VERSION
from clada.ops.activations import ACTIVATIONS
from clada.ops.onnx import function_proto
from clada.ops.record import Array, Tensor

_ATTRIBUTES = {"activation": ACTIVATION}
_BYTES_READ = 1 << 29
_MOST_COPIES = 20


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


def copies_of_bytes(size: int) -> int:
    """Number of copies of weights of a size in a graph, enough to read far more than any cache holds."""
    return min(_MOST_COPIES, -(-_BYTES_READ // size))


def copies_of(shape: Shape) -> int:
    """Number of copies of the layer in a graph, whose weights may be read in 16 bits."""
    return copies_of_bytes(2 * 3 * shape.neurons * shape.hidden)


def numbered(name: str, copies: int) -> list[str]:
    """Names of a value of which each copy has its own."""
    return [f"{name}.{copy}" for copy in range(copies)]


def reordered(array: Array, copy: int) -> Array:
    """Weights or thresholds of a copy: the same neurons in another order, as equal weights would be stored once."""
    return np.roll(array, copy, axis=0)


def _input(spec: Tensor, name: str, neurons: int, hidden: int) -> onnx_ir.Value:
    sizes: dict[str, int | str] = {"B": 1, "S": "sequence_length", "D": hidden, "F": neurons}
    dtype = onnx_ir.DataType.BOOL if spec.dtype == "bool" else onnx_ir.DataType.FLOAT
    shape = onnx_ir.Shape([sizes[axis] for axis in spec.axes])
    return onnx_ir.Value(name=name, shape=shape, type=onnx_ir.TensorType(dtype))


def _copy(
    inputs: dict[str, onnx_ir.Value], threshold: onnx_ir.Value, weights: dict[str, Array], copy: int
) -> onnx_ir.Node:
    """Node of the op on the shared inputs and thresholds, with weights of its own."""
    own = {
        name: initializer(f"{name}.{copy}", onnx_ir.tensor(reordered(array, copy))) for name, array in weights.items()
    }
    own["threshold"] = threshold
    node = onnx_ir.node(
        SPARSE_GATED_FFN.name,
        [(own | inputs)[spec.name] for spec in SPARSE_GATED_FFN.inputs],
        {**_ATTRIBUTES, **PLUGIN_ATTRIBUTES},
        domain=DOMAIN,
        num_outputs=len(SPARSE_GATED_FFN.outputs),
    )
    for value, spec in zip(node.outputs, SPARSE_GATED_FFN.outputs, strict=True):
        value.name = f"{spec.name}.{copy}"
        value.type = onnx_ir.TensorType(onnx_ir.DataType.INT32 if spec.dtype == "int32" else onnx_ir.DataType.FLOAT)
    return node


def layer_model(weights: dict[str, Array], copies: int) -> onnx_ir.Model:
    """Model of the op alone, weights constant, batch 1; thresholds are an input: one session serves all shares."""
    neurons, hidden = weights["w_gate"].shape
    specs = {spec.name: spec for spec in SPARSE_GATED_FFN.inputs if spec.name not in weights}
    of_copies = specs.pop("threshold")
    inputs = {name: _input(spec, name, neurons, hidden) for name, spec in specs.items()}
    thresholds = [_input(of_copies, name, neurons, hidden) for name in numbered("threshold", copies)]
    nodes = [_copy(inputs, threshold, weights, copy) for copy, threshold in enumerate(thresholds)]
    graph = onnx_ir.Graph(
        [*inputs.values(), *thresholds],
        [value for node in nodes for value in node.outputs],
        nodes=nodes,
        initializers=[value for node in nodes for value in node.inputs if value is not None and value.const_value],
        opset_imports={"": DEFAULT_OPSET, DOMAIN: VERSION},
        name="layer",
    )
    function = onnx_ir.serde.deserialize_function(function_proto(SPARSE_GATED_FFN, _ATTRIBUTES, DEFAULT_OPSET))
    return onnx_ir.Model(graph, ir_version=10, functions=[function])


def exact_threshold(weights: Mapping[str, Array], x: Array, fraction: float) -> Array:
    """Thresholds f32[F] that keep exactly the share of neurons with the largest activations, for one token x."""
    product = weights["w_gate"].astype(np.float64) @ x.reshape(-1).astype(np.float64)
    magnitude = np.abs(ACTIVATIONS[ACTIVATION].reference(product))
    threshold, scale = exact_share(magnitude[None], fraction)
    return threshold * scale[0]
