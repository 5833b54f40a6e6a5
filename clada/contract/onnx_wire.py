"""Reader of ONNX files, and writer of graphs of a few nodes, without the onnx package, which a device need not have."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A protocol buffer's bytes.
Message = bytes | memoryview

# Numbers of the fields of ModelProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto and its external data.
_GRAPH, _OPSET_IMPORT, _TRAINING, _FUNCTIONS = 7, 8, 20, 25
_NODE, _INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_INPUT, _OUTPUT, _NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT = 1, 2
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 8, 9, 13
_KEY, _VALUE = 1, 2
# Of a ValueInfoProto: the path to its dimensions, and the number of a fixed one.
_VALUE_NAME, _TO_DIMENSIONS, _FIXED_SIZE = 1, (2, 1, 2, 1), 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_SHIFT = 63

# Where a message may hold others with tensors in them: by its kind, the field's number and the other's kind.
_HOLDERS: dict[str, dict[int, str]] = {
    "model": {_GRAPH: "graph", _TRAINING: "training", _FUNCTIONS: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {_NODE: "node", _INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {_ATTRIBUTE: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
# Messages within messages; what protobuf itself reads at most.
_MOST_LEVELS = 100


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Args:
        name: Its name.
        op: Its op, without the domain.
        inputs: Names of what it takes.
        outputs: Names of what it gives.
        floats: Its attributes that are one number in floating point.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    floats: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Constant:
    """Initializer: its type and shape, and where its content is.

    Args:
        content: All of it, where the ONNX file holds it.
        file: Name of the file that holds it otherwise; empty where the ONNX file does.
        offset: Offset in that file, in bytes.
        length: Number of bytes there.
        dtype: TensorProto's number of its type.
        shape: Its sizes.
    """

    content: Message
    file: str
    offset: int
    length: int
    dtype: int
    shape: tuple[int, ...]


class _Field(NamedTuple):  # of which there are many: made faster than a dataclass
    number: int
    value: int
    content: Message
    whole: Message


def _varint(message: Message, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > _MOST_SHIFT:
            raise ValueError("a number of more than 64 bits")


def _fields(message: Message) -> Iterator[_Field]:
    """Yield the fields of a protocol buffer message, in order; content of a fixed size is its bytes."""
    # A view: cut without being copied.
    message = memoryview(message)
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        kind, value, content = key & 7, 0, message[:0]
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            if kind == _BYTES:
                size, at = _varint(message, at)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"a field of kind {kind}")
            content, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError("a field that ends after the file")
        yield _Field(key >> 3, value, content, message[start:at])


def _texts(message: Message, number: int) -> tuple[str, ...]:
    return tuple(bytes(field.content).decode() for field in _fields(message) if field.number == number)


def _text(message: Message, number: int) -> str:
    """Text that occurs once; of several, protobuf takes the last."""
    return (_texts(message, number) or ("",))[-1]


def _of_graph(model: Message, number: int) -> Iterator[Message]:
    """Contents of one field of the graph of a ModelProto, in order."""
    for part in _fields(model):
        if part.number == _GRAPH:
            yield from (field.content for field in _fields(part.content) if field.number == number)


def nodes_of(model: Message, domain: str) -> list[Node]:
    """Nodes of a domain in the graph of a ModelProto, in order; those in functions are not included."""
    return [
        Node(_text(node, _NAME), _text(node, _OP_TYPE), _texts(node, _INPUT), _texts(node, _OUTPUT), _floats(node))
        for node in _of_graph(model, _NODE)
        if _text(node, _DOMAIN) == domain
    ]


def _floats(node: Message) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for attribute in (field.content for field in _fields(node) if field.number == _ATTRIBUTE):
        for field in _fields(attribute):
            if field.number == _ATTRIBUTE_FLOAT:
                (found[_text(attribute, _ATTRIBUTE_NAME)],) = struct.unpack("<f", field.content)
    return tuple(found.items())


def inputs_of(model: Message) -> dict[str, tuple[int | None, ...]]:
    """Inputs of the graph of a ModelProto, by name, with their sizes; None for a size that is not fixed."""
    found: dict[str, tuple[int | None, ...]] = {}
    for value in _of_graph(model, _GRAPH_INPUT):
        dimensions = [value]
        for number in _TO_DIMENSIONS:
            dimensions = [field.content for part in dimensions for field in _fields(part) if field.number == number]
        sizes = [[field.value for field in _fields(size) if field.number == _FIXED_SIZE] for size in dimensions]
        found[_text(value, _VALUE_NAME)] = tuple(fixed[-1] if fixed else None for fixed in sizes)
    return found


def constants_of(model: Message) -> dict[str, Constant]:
    """Initializers of the graph of a ModelProto, by name."""
    return {_text(tensor, _TENSOR_NAME): _constant(tensor) for tensor in _of_graph(model, _INITIALIZER)}


def _constant(tensor: Message) -> Constant:
    fields = list(_fields(tensor))
    entries = [field.content for field in fields if field.number == _EXTERNAL_DATA]
    place = {_text(entry, _KEY): _text(entry, _VALUE) for entry in entries}
    return Constant(
        content=b"".join(field.content for field in fields if field.number == _RAW_DATA),
        file=place.get("location", ""),
        offset=int(place.get("offset", 0)),
        length=int(place.get("length", 0)),
        dtype=next((field.value for field in fields if field.number == _DATA_TYPE), 0),
        shape=tuple(size for field in fields if field.number == _DIMS for size in _sizes(field)),
    )


def _sizes(field: _Field) -> Iterator[int]:
    """Numbers of a repeated field, which may be packed."""
    if not field.content:
        yield field.value
    at = 0
    while at < len(field.content):
        value, at = _varint(field.content, at)
        yield value


def external_files(model: Message) -> set[str]:
    """Names of all external data files of a ModelProto, wherever in it their tensors are."""
    found: set[str] = set()
    waiting: list[tuple[str, Message, int]] = [("model", model, 0)]
    while waiting:
        kind, message, level = waiting.pop()
        if level > _MOST_LEVELS:
            raise ValueError("messages that are nested too deeply")
        if kind == "tensor":
            found.update(_locations(message))
            continue
        holders = _HOLDERS[kind]
        waiting += [(holders[f.number], f.content, level + 1) for f in _fields(message) if f.number in holders]
    return found


def _locations(tensor: Message) -> Iterator[str]:
    """Every name that any reader could take for that of a tensor's file."""
    for entry in (field.content for field in _fields(tensor) if field.number == _EXTERNAL_DATA):
        if "location" in _texts(entry, _KEY):
            yield from _texts(entry, _VALUE)


def opset_of(model: Message) -> int:
    """Version of the standard ops that a ModelProto imports; 0 where it imports none."""
    for field in _fields(model):
        if field.number == _OPSET_IMPORT and not _text(field.content, _OPSET_DOMAIN):
            return next((part.value for part in _fields(field.content) if part.number == _OPSET_VERSION), 0)
    return 0


def without_functions(model: Message) -> bytes:
    """Copy of a ModelProto without its function bodies."""
    return b"".join(field.whole for field in _fields(model) if field.number != _FUNCTIONS)


# Of what is written: types of tensors, and the versions that every runtime in use reads.
FLOAT, INT32, BOOL = 1, 6, 9
_IR_VERSION, _OPSET = 8, 17


@dataclass(frozen=True)
class Vector:
    """Graph input or output: a vector of any length.

    Args:
        name: Its name.
        type: FLOAT, INT32 or BOOL.
        length: Name of its dimension.
    """

    name: str
    type: int
    length: str


def _encoded(number: int, value: int | str | bytes) -> bytes:
    """Encode one field of a protocol buffer message; numbers here are below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    content = value.encode() if isinstance(value, str) else value
    size, length = len(content), b""
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _value_info(vector: Vector) -> bytes:
    shape = _encoded(1, _encoded(2, vector.length))
    tensor = _encoded(1, vector.type) + _encoded(2, shape)
    return _encoded(1, vector.name) + _encoded(2, _encoded(1, tensor))


def _node(node: Node) -> bytes:
    return (
        b"".join(_encoded(_INPUT, name) for name in node.inputs)
        + _encoded(_OUTPUT, node.outputs[0])
        + _encoded(_OP_TYPE, node.op)
    )


def graph_bytes(nodes: Sequence[Node], inputs: Sequence[Vector], output: Vector) -> bytes:
    """Serialize a model of these nodes, in order, as a ModelProto."""
    graph = b"".join(_encoded(1, _node(node)) for node in nodes) + _encoded(2, "clada")
    graph += b"".join(_encoded(11, _value_info(vector)) for vector in inputs) + _encoded(12, _value_info(output))
    opset = _encoded(1, "") + _encoded(2, _OPSET)
    return _encoded(1, _IR_VERSION) + _encoded(7, graph) + _encoded(8, opset)
