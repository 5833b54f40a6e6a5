"""Attention of a graph with an in-place cache as our own op, which has kernels on a CPU, for every family alike."""

from dataclasses import dataclass

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values

from clada.exporter.graph import rotary
from clada.exporter.graph.ort_attention import OP as ATTENTION
from clada.exporter.graph.rewrites import DOMAIN as MICROSOFT
from clada.ops import CACHED_ATTENTION, DOMAIN, PLUGIN_ATTRIBUTES

# Query, key, value, their past, the last place and the total: what is given beyond changes what the op computes.
_INPUTS = 7


@dataclass(frozen=True)
class _Turn:
    """How both queries and keys of a node are turned, and what they are before that."""

    query: onnx_ir.Value
    key: onnx_ir.Value
    cos: onnx_ir.Value
    sin: onnx_ir.Value
    interleaved: bool
    width: int


def _is(value: onnx_ir.Value | None, domain: str, op: str) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and (node.domain, node.op_type) == (domain, op)


def _number(node: onnx_ir.Node, name: str, default: float) -> float:
    """Value of a node's attribute, or the default where it has none."""
    attribute = node.attributes.get(name)
    return float(default if attribute is None else attribute.value)


def _turn(node: onnx_ir.Node) -> _Turn | None:
    """The rotary embedding of an attention node's queries and keys, if one kind turns both."""
    turned = node.inputs[:2]
    if not all(_is(value, MICROSOFT, rotary.OP) for value in turned):
        return None
    query, key = (value.producer() for value in turned if value is not None)
    assert query is not None
    assert key is not None
    (of_query, start, cos, sin), (of_key, *same) = query.inputs, key.inputs
    names = ("interleaved", "rotary_embedding_dim")
    if [start, cos, sin] != same or any(_number(query, name, 0) != _number(key, name, 0) for name in names):
        return None
    if of_query is None or of_key is None or cos is None or sin is None or of_query.shape is None:
        return None
    whole = of_query.shape[-1]
    assert isinstance(whole, int)
    width = int(_number(query, names[1], 0)) or whole // int(_number(node, "num_heads", 1))
    return _Turn(of_query, of_key, cos, sin, bool(_number(query, names[0], 0)), width)


def _kind(turn: _Turn | None) -> str:
    """Value of the op's attribute `rotary`."""
    return "none" if turn is None else "interleaved" if turn.interleaved else "halves"


def _packed(parts: list[onnx_ir.Value]) -> tuple[onnx_ir.Value, list[onnx_ir.Node]]:
    """Queries, keys and values in one value, and the nodes that this takes: none where they are cut from one."""
    cut = parts[0].producer()
    if cut is not None and cut.op_type == "Split" and list(cut.outputs) == parts and _number(cut, "axis", 0) in (-1, 2):
        assert cut.inputs[0] is not None
        return cut.inputs[0], []
    joined = onnx_ir.node("Concat", parts, {"axis": -1})
    return joined.outputs[0], [joined]


def _no_angles(traced: onnx_ir.Model, like: onnx_ir.Value) -> onnx_ir.Value:
    """An initializer of no angles, for layers that turn nothing."""
    assert like.dtype is not None
    tensor = onnx_ir.tensor(np.zeros((0, 0), like.dtype.numpy()), name="no_angles")
    value = onnx_ir.Value(
        name="no_angles", const_value=tensor, shape=onnx_ir.Shape([0, 0]), type=onnx_ir.TensorType(like.dtype)
    )
    traced.graph.register_initializer(value)
    return value


def use_cached_attention(traced: onnx_ir.Model) -> None:
    """Write each attention node, and the rotary embedding before it, as one node of our op; in place.

    A model holds one body of an op, so where layers turn differently, or some do not, rotary embeddings stay as they
    are. So do attention nodes of more inputs than a cache's.
    """
    nodes = [node for node in traced.graph if (node.domain, node.op_type) == (MICROSOFT, ATTENTION)]
    if not nodes or any(value is not None for node in nodes for value in node.inputs[_INPUTS:]):
        return
    turns = {node: _turn(node) for node in nodes}
    kinds = {_kind(turn) for turn in turns.values()}
    kind = kinds.pop() if len(kinds) == 1 else "none"
    no_angles = None
    for node, turn in turns.items():
        query, key, value, past_key, past_value, last, total = node.inputs[:_INPUTS]
        assert query is not None and key is not None and value is not None
        angles: tuple[onnx_ir.Value, onnx_ir.Value]
        if kind == "none" or turn is None:
            no_angles = no_angles or _no_angles(traced, query)
            angles, width = (no_angles, no_angles), 0
        else:
            query, key, angles, width = turn.query, turn.key, (turn.cos, turn.sin), turn.width
        packed, more = _packed([query, key, value])
        attributes: dict[str, str | float] = {
            "num_heads": int(_number(node, "num_heads", 1)),
            "kv_num_heads": int(_number(node, "kv_num_heads", 1)),
            "rotary": kind,
            "rotary_embedding_dim": width,
            "scale": _number(node, "scale", 1),
            "softcap": _number(node, "softcap", 0),
            "local_window_size": int(_number(node, "local_window_size", -1)),
            **PLUGIN_ATTRIBUTES,
        }
        ours = onnx_ir.node(
            CACHED_ATTENTION.name,
            [packed, *angles, past_key, past_value, last, total],
            attributes,
            domain=DOMAIN,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        replace_nodes_and_values(traced.graph, node, [node], [*more, ours], list(node.outputs), list(ours.outputs))
    onnx_ir.passes.common.RemoveUnusedNodesPass()(traced)
