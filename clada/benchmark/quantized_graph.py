"""Quantization of the weights in a graph with our ops."""

import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values

from clada.benchmark.matmul_nbits import make_products_quantized
from clada.benchmark.precisions import Blocks, rounded
from clada.benchmark.storage import initializer, weight
from clada.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES, QUANTIZED
from clada.ops.onnx import function_proto


def _inputs(graph: onnx_ir.Graph, node: onnx_ir.Node, blocks: Blocks) -> list[onnx_ir.Value | None]:
    """Inputs of the quantized op: codes and scales for each matrix, the others as they are."""
    inputs: list[onnx_ir.Value | None] = []
    for value in node.inputs:
        tensor = weight(value)
        if value is None or tensor is None:
            inputs.append(value)
            continue
        for part, array in zip(("codes", "scales"), rounded(tensor.numpy(), blocks), strict=True):
            quantized = initializer(f"{value.name}.{part}", onnx_ir.tensor(array))
            graph.register_initializer(quantized)
            inputs.append(quantized)
    return inputs


def make_quantized(model: onnx_ir.Model, blocks: Blocks) -> None:
    """Quantize, in place, the matrices of our ops, and of every other product with a constant matrix."""
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type not in QUANTIZED:
            continue
        op = QUANTIZED[node.op_type]
        of_float = {a.name: node.attributes[a.name].value for a in OPS[node.op_type].attributes}
        attributes = {"bits": blocks.bits, "block_size": blocks.block_size, **of_float}
        quantized = onnx_ir.node(
            op.name,
            _inputs(model.graph, node, blocks),
            attributes | PLUGIN_ATTRIBUTES,
            domain=DOMAIN,
            num_outputs=len(op.outputs),
        )
        replace_nodes_and_values(model.graph, node, [node], [quantized], list(node.outputs), list(quantized.outputs))
        proto = function_proto(op, attributes, model.opset_imports[""])
        function = onnx_ir.serde.deserialize_function(proto)
        model.functions.pop((DOMAIN, node.op_type, ""), None)
        model.functions[function.identifier()] = function
    make_products_quantized(model, blocks)
