"""Rewrites of a traced graph, in place, for ONNX Runtime: fewer nodes, each of which costs it microseconds."""

from collections.abc import Iterator

import onnx_ir
from onnx_ir.convenience import replace_all_uses_with, replace_nodes_and_values
from onnx_ir.passes.common import RemoveUnusedNodesPass

# Of ONNX Runtime's own ops.
DOMAIN = "com.microsoft"


def divide_by_roots(traced: onnx_ir.Model) -> None:
    """Write x · (1 / √v) as x / √v: the form that ONNX Runtime fuses to an RMS norm, seven kernels into one."""
    for node in list(traced.graph):
        root = node.inputs[0]
        if node.op_type != "Reciprocal" or root is None or getattr(root.producer(), "op_type", "") != "Sqrt":
            continue
        products = [use.node for use in node.outputs[0].uses()]
        if any(product.op_type != "Mul" for product in products):
            continue
        for product in products:
            x = next(value for value in product.inputs if value is not node.outputs[0])
            quotient = onnx_ir.node("Div", [x, root], name=product.name)
            replace_nodes_and_values(
                traced.graph, product, [product], [quotient], list(product.outputs), list(quotient.outputs)
            )
        traced.graph.remove(node, safe=True)


def drop_reshapes(traced: onnx_ir.Model) -> None:
    """Remove each Reshape back to a shape that a value had before: heads are split and joined again."""
    for node in traced.graph:
        output = node.outputs[0]
        if node.op_type != "Reshape" or output.is_graph_output() or not is_known(output):
            continue
        same = next((value for value in _before(node) if value.shape == output.shape), None)
        if same is not None:
            replace_all_uses_with(output, same)
    RemoveUnusedNodesPass()(traced)


def only_use(value: onnx_ir.Value, op: str, place: int | None = None) -> onnx_ir.Node | None:
    """The one node that uses a value, if it is of this op, and takes it as the input at `place` where that is given."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op or uses[0].node.domain:
        return None
    return uses[0].node if place is None or uses[0].idx == place else None


def is_known(value: onnx_ir.Value) -> bool:
    """Whether each of a value's sizes is a number or has a name."""
    return value.shape is not None and not any(value.shape.is_unknown_dim(axis) for axis in range(len(value.shape)))


def _before(reshape: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """Earlier values with the same elements as a Reshape's output, the nearest first."""
    node: onnx_ir.Node | None = reshape
    while node is not None and node.op_type == "Reshape":
        value = node.inputs[0]
        assert value is not None
        yield value
        node = value.producer()
