"""Residual sums and the norms after them in one op of ONNX Runtime."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values

from clada.exporter.graph.rewrites import DOMAIN as MICROSOFT
from clada.exporter.graph.rewrites import is_known, only_use


def _constant(value: onnx_ir.Value | None) -> npt.NDArray[Any] | None:
    """Content of a constant; None of anything else."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


@dataclass(frozen=True)
class _Norm:
    """The nodes of an RMS norm, their weight and what is added to the mean square."""

    nodes: list[onnx_ir.Node]
    weight: onnx_ir.Value
    epsilon: float


def _is_of_rows(mean: onnx_ir.Node) -> bool:
    """Whether a mean is over the last of three axes, which it keeps."""
    keeps = mean.attributes.get("keepdims")
    return _constant(mean.inputs[1]) in (-1, 2) and (keeps is None or bool(keeps.value))


def _norm_of(x: onnx_ir.Value) -> _Norm | None:
    """The RMS norm of a value over its last axis, as `divide_by_roots` leaves it; None where there is none."""
    square = next((use.node for use in x.uses() if use.node.op_type == "Pow" and use.idx == 0), None)
    if square is None or _constant(square.inputs[1]) != 2:
        return None
    mean = only_use(square.outputs[0], "ReduceMean", 0)
    if mean is None or not _is_of_rows(mean):
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
        if norm is None or total.is_graph_output() or not is_known(total):
            continue
        if any(term.shape != total.shape for term in terms) or total.shape is None or len(total.shape) != 3:
            continue
        both = onnx_ir.node(
            "SkipSimplifiedLayerNormalization",
            [*terms, norm.weight],
            {"epsilon": norm.epsilon},
            domain=MICROSOFT,
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
    traced.graph.opset_imports[MICROSOFT] = 1
