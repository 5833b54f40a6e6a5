"""What a build reads of an ONNX file, without the onnx package, which a device need not have."""

from collections.abc import Iterator
from dataclasses import dataclass

# Numbers of the fields of ModelProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto and its external data.
_GRAPH, _OPSET_IMPORT, _TRAINING, _FUNCTIONS = 7, 8, 20, 25
_NODE, _INITIALIZER = 1, 5
_INPUT, _OUTPUT, _NAME, _OP_TYPE, _DOMAIN = 1, 2, 3, 4, 7
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA = 8, 9, 13
_KEY, _VALUE = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Where a message may hold others with tensors in them: by its kind, the field's number and the other's kind.
_HOLDERS: dict[str, dict[int, str]] = {
    "model": {_GRAPH: "graph", _TRAINING: "training", _FUNCTIONS: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {_NODE: "node", _INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
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
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Constant:
    """Where the content of an initializer is.

    Args:
        content: All of it, where the ONNX file holds it.
        file: Name of the file that holds it otherwise; empty where the ONNX file does.
        offset: Where in that file it begins, in bytes.
        length: How many bytes it has there.
    """

    content: bytes
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class _Field:
    number: int
    value: int
    content: bytes
    whole: bytes


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _fields(message: bytes) -> Iterator[_Field]:
    """The fields of a protocol buffer's message, in order."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        kind, value, content = key & 7, 0, b""
        if kind == _VARINT:
            value, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            size, at = _varint(message, at)
            content, at = message[at : at + size], at + size
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(message):
            raise ValueError("a field that ends after the file")
        yield _Field(key >> 3, value, content, message[start:at])


def _texts(message: bytes, number: int) -> tuple[str, ...]:
    return tuple(bytes(field.content).decode() for field in _fields(message) if field.number == number)


def _text(message: bytes, number: int) -> str:
    return "".join(_texts(message, number))


def _of_graph(model: bytes, number: int) -> Iterator[bytes]:
    """The contents of one field of the graph of a ModelProto, in order."""
    for part in _fields(model):
        if part.number == _GRAPH:
            yield from (field.content for field in _fields(part.content) if field.number == number)


def nodes_of(model: bytes, domain: str) -> list[Node]:
    """The nodes of a domain in the graph of a ModelProto, in order; those in functions are not among them."""
    return [
        Node(_text(node, _NAME), _text(node, _OP_TYPE), _texts(node, _INPUT), _texts(node, _OUTPUT))
        for node in _of_graph(model, _NODE)
        if _text(node, _DOMAIN) == domain
    ]


def constants_of(model: bytes) -> dict[str, Constant]:
    """The initializers of the graph of a ModelProto, by name."""
    return {_text(tensor, _TENSOR_NAME): _constant(tensor) for tensor in _of_graph(model, _INITIALIZER)}


def _constant(tensor: bytes) -> Constant:
    entries = [field.content for field in _fields(tensor) if field.number == _EXTERNAL_DATA]
    place = {_text(entry, _KEY): _text(entry, _VALUE) for entry in entries}
    content = b"".join(field.content for field in _fields(tensor) if field.number == _RAW_DATA)
    return Constant(content, place.get("location", ""), int(place.get("offset", 0)), int(place.get("length", 0)))


def external_files(model: bytes) -> set[str]:
    """Names of all files that a ModelProto has tensors in, wherever in it those tensors are."""
    found: set[str] = set()
    waiting: list[tuple[str, bytes, int]] = [("model", model, 0)]
    while waiting:
        kind, message, level = waiting.pop()
        if level > _MOST_LEVELS:
            raise ValueError("messages that are nested too deeply")
        if kind == "tensor":
            entries = [field.content for field in _fields(message) if field.number == _EXTERNAL_DATA]
            # Every name that any reader could take.
            found.update(name for e in entries if "location" in _texts(e, _KEY) for name in _texts(e, _VALUE))
            continue
        holders = _HOLDERS[kind]
        waiting += [(holders[f.number], f.content, level + 1) for f in _fields(message) if f.number in holders]
    return found


def opset_of(model: bytes) -> int:
    """Version of the standard ops that a ModelProto imports; 0 where it imports none."""
    for field in _fields(model):
        if field.number == _OPSET_IMPORT and not _text(field.content, _OPSET_DOMAIN):
            return next((part.value for part in _fields(field.content) if part.number == _OPSET_VERSION), 0)
    return 0


def without_functions(model: bytes) -> bytes:
    """A ModelProto without its function bodies."""
    return b"".join(field.whole for field in _fields(model) if field.number != _FUNCTIONS)
