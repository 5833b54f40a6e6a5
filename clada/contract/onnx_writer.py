"""ONNX graphs of a few nodes, serialised without the onnx package, which a device need not have."""

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT, INT32, BOOL = 1, 6, 9
_IR_VERSION, _OPSET = 8, 17


@dataclass(frozen=True)
class Node:
    """One node of ONNX's own domain, without attributes."""

    op: str
    inputs: Sequence[str]
    output: str


@dataclass(frozen=True)
class Vector:
    """An input or output: a vector of any length.

    Args:
        name: Its name.
        type: FLOAT, INT32 or BOOL.
        length: Name of its dimension.
    """

    name: str
    type: int
    length: str


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer's message; numbers here are below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    content = value.encode() if isinstance(value, str) else value
    size, length = len(content), b""
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _value_info(vector: Vector) -> bytes:
    shape = _field(1, _field(2, vector.length))
    tensor = _field(1, vector.type) + _field(2, shape)
    return _field(1, vector.name) + _field(2, _field(1, tensor))


def _node(node: Node) -> bytes:
    return b"".join(_field(1, name) for name in node.inputs) + _field(2, node.output) + _field(4, node.op)


def graph_bytes(nodes: Sequence[Node], inputs: Sequence[Vector], output: Vector) -> bytes:
    """A model of these nodes, in order, as a ModelProto."""
    graph = b"".join(_field(1, _node(node)) for node in nodes) + _field(2, "clada")
    graph += b"".join(_field(11, _value_info(vector)) for vector in inputs) + _field(12, _value_info(output))
    opset = _field(1, "") + _field(2, _OPSET)
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)
