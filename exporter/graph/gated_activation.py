"""Activated gates of a graph with an in-place cache as our own op, one node in the place of four."""

from dataclasses import dataclass

import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values

from clada.exporter.graph.rewrites import only_use
from clada.ops import DOMAIN, GATED_ACTIVATION, PLUGIN_ATTRIBUTES


@dataclass(frozen=True)
class _Gate:
    """An activated gate times what it gates: its nodes in order, from the split of the product on."""

    nodes: list[onnx_ir.Node]
    activation: str


def _activated(gate: onnx_ir.Value) -> tuple[list[onnx_ir.Node], str] | None:
    """The nodes of an activation of a value, which nothing else uses, the last one its result's; and its name."""
    users = [use.node for use in gate.uses()]
    if len(users) == 2 and {user.op_type for user in users} == {"Sigmoid", "Mul"}:
        sigmoid, product = sorted(users, key=lambda user: user.op_type, reverse=True)
        if only_use(sigmoid.outputs[0], "Mul") is product:
            return [sigmoid, product], "silu"
    gelu, relu = only_use(gate, "Gelu"), only_use(gate, "Relu")
    if gelu is not None:
        form = gelu.attributes.get("approximate")
        return [gelu], "gelu_tanh" if form is not None and form.value == "tanh" else "gelu"
    return None if relu is None else ([relu], "relu")


def _gate_of(split: onnx_ir.Node) -> _Gate | None:
    axis = split.attributes.get("axis")
    if split.op_type != "Split" or split.domain or len(split.outputs) != 2 or axis is None or axis.value not in (-1, 2):
        return None
    gate, up = split.outputs
    if gate.shape is None or up.shape is None or len(gate.shape) != 3 or gate.shape != up.shape:
        return None
    if not isinstance(gate.shape[-1], int):
        return None
    activated = _activated(gate)
    if activated is None:
        return None
    nodes, name = activated
    product = only_use(nodes[-1].outputs[0], "Mul")
    if product is None or only_use(up, "Mul") is not product:
        return None
    return _Gate([split, *nodes, product], name)


def use_gated_activation(traced: onnx_ir.Model) -> None:
    """Write each activated gate, cut from one product with what it gates, as one node of our op; in place.

    A model holds one body of an op: where layers activate differently, all stay as they are.
    """
    gates = [gate for node in traced.graph if (gate := _gate_of(node)) is not None]
    if len({gate.activation for gate in gates}) != 1:
        return
    for gate in gates:
        split, product = gate.nodes[0], gate.nodes[-1]
        ours = onnx_ir.node(
            GATED_ACTIVATION.name,
            [split.inputs[0]],
            {"activation": gate.activation, **PLUGIN_ATTRIBUTES},
            domain=DOMAIN,
            name=product.name,
        )
        replace_nodes_and_values(traced.graph, product, gate.nodes, [ours], list(product.outputs), list(ours.outputs))
