"""Merging of products of the same tokens with packed weights, such as an attention's queries, keys and values.

A product with few weights takes about as long to hand to threads as to compute.
"""

from typing import Any

import numpy as np
import onnx_ir

UNPACKING = "DequantizeLinear"
# Blocks lie along the first axis, the inputs': the layout from which ONNX Runtime makes a product with packed weights.
BLOCK_AXIS = 0
# Between the names of weights that are one.
AND = "+"


def merge_products(traced: onnx_ir.Model) -> None:
    """Merge, in place, the products of the same tokens into one, followed by a Split."""
    products: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
    for node in traced.graph:
        if node.op_type == "MatMul" and (given(node, 1).producer() or node).op_type == UNPACKING:
            products.setdefault(given(node, 0), []).append(node)
    for nodes in products.values():
        if len(nodes) > 1:
            _merge(traced.graph, nodes)


def widths(unpacking: onnx_ir.Node) -> list[int]:
    """Number of outputs of each of the merged weights."""
    (product, _), *_ = unpacking.outputs[0].uses()
    for user, _ in product.outputs[0].uses():
        if user.op_type == "Split":
            return [int(size) for size in constant(given(user, 1))]
    return [constant(given(unpacking, 0)).shape[1 - BLOCK_AXIS]]


def given(node: onnx_ir.Node, index: int) -> onnx_ir.Value:
    """Input of a node that must have it."""
    value = node.inputs[index]
    assert value is not None
    return value


def constant(value: onnx_ir.Value) -> Any:
    """Content of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


def _merge(graph: onnx_ir.Graph, products: list[onnx_ir.Node]) -> None:
    unpackings = [node for product in products if (node := given(product, 1).producer()) is not None]

    def initializer(name: str, array: Any) -> onnx_ir.Value:
        value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
        graph.register_initializer(value)
        return value

    sizes = np.array([constant(given(node, 0)).shape[1 - BLOCK_AXIS] for node in unpackings], np.int64)
    whole, outputs = products[0].outputs[0], [product.outputs[0] for product in products]
    parts = [onnx_ir.val(f"{output.name}_part", type=output.type, shape=output.shape) for output in outputs]
    onnx_ir.convenience.replace_all_uses_with(outputs, parts)
    assert whole.shape is not None
    whole.shape = onnx_ir.Shape([*whole.shape[:-1], int(sizes.sum())])
    given(products[0], 1).shape = None
    cut = initializer(f"{whole.name}_sizes", sizes)
    split = onnx_ir.node("Split", [whole, cut], {"axis": -1}, outputs=parts, name=f"{products[0].name}_split")
    graph.insert_after(products[0], split)
    for index in range(2):
        several = [given(node, index) for node in unpackings]
        arrays = [constant(value) for value in several]
        joined = initializer(AND.join(str(value.name) for value in several), np.concatenate(arrays, 1 - BLOCK_AXIS))
        for node in unpackings:
            node.replace_input_with(index, joined)
        for value in several:
            del graph.initializers[str(value.name)]
    graph.remove([*products[1:], *unpackings[1:]], safe=True)
