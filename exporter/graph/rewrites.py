"""Rewrites of a traced graph, in place, for ONNX Runtime: fewer nodes, each of which costs it microseconds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
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
        if node.op_type != "Reshape" or output.is_graph_output() or not _is_known(output):
            continue
        same = next((value for value in _before(node) if value.shape == output.shape), None)
        if same is not None:
            replace_all_uses_with(output, same)
    RemoveUnusedNodesPass()(traced)


def only_use(value: onnx_ir.Value, op: str, inputs: int | None = None) -> onnx_ir.Node | None:
    """The one node that uses a value, once and as an output of nothing, if it is of this op."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op or uses[0].node.domain:
        return None
    return uses[0].node if inputs is None or uses[0].idx == inputs else None


def _constant(value: onnx_ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


@dataclass(frozen=True)
class _Norm:
    """The nodes of an RMS norm, their weight and what is added to the mean square."""

    nodes: list[onnx_ir.Node]
    weight: onnx_ir.Value
    epsilon: float


def _norm_of(x: onnx_ir.Value) -> _Norm | None:
    """The RMS norm of a value over its last axis, as `divide_by_roots` leaves it; None where there is none."""
    square = next((use.node for use in x.uses() if use.node.op_type == "Pow" and use.idx == 0), None)
    if square is None or _constant(square.inputs[1]) != 2:
        return None
    mean = only_use(square.outputs[0], "ReduceMean", 0)
    if (
        mean is None
        or _constant(mean.inputs[1]) not in (-1, 2)
        or ("keepdims" in mean.attributes and not mean.attributes["keepdims"].value)
    ):
        return None
    raised = only_use(mean.outputs[0], "Add", 0)
    root = raised and only_use(raised.outputs[0], "Sqrt")
    quotient = root and only_use(root.outputs[0], "Div", 1)
    scaled = quotient and quotient.inputs[0] is x and only_use(quotient.outputs[0], "Mul")
    if not raised or not root or not quotient or not scaled:
        return None
    weight = next(value for value in scaled.inputs if value is not quotient.outputs[0])
    epsilon = _constant(raised.inputs[1])
    width = x.shape[-1] if x.shape is not None else None
    if weight is None or epsilon is None or epsilon.size != 1 or weight.shape is None or list(weight.shape) != [width]:
        return None
    if weight.producer() is not None or weight.dtype != x.dtype:
        return None
    return _Norm([square, mean, raised, root, quotient, scaled], weight, float(epsilon))


def add_within_norms(traced: onnx_ir.Model) -> None:
    """Write a sum that an RMS norm follows, and the norm, as one op of ONNX Runtime; the sum is its output too."""
    for added in list(traced.graph):
        if added.op_type != "Add" or added.domain:
            continue
        total = added.outputs[0]
        norm = _norm_of(total)
        terms = [value for value in added.inputs if value is not None]
        if norm is None or total.is_graph_output() or not _is_known(total):
            continue
        if any(term.shape != total.shape for term in terms) or total.shape is None or len(total.shape) != 3:
            continue
        both = onnx_ir.node(
            "SkipSimplifiedLayerNormalization",
            [*terms, norm.weight],
            {"epsilon": norm.epsilon},
            domain=DOMAIN,
            num_outputs=4,
            name=norm.nodes[-1].name,
        )
        # Mean and inverse deviation are not asked for.
        both.outputs[1].name = both.outputs[2].name = ""
        replace_nodes_and_values(
            traced.graph,
            added,
            [added, *norm.nodes],
            [both],
            [norm.nodes[-1].outputs[0], total],
            [both.outputs[0], both.outputs[3]],
        )
    traced.graph.opset_imports[DOMAIN] = 1


def _is_known(value: onnx_ir.Value) -> bool:
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
