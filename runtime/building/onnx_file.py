"""What a build reads of an ONNX file, without the onnx package, which a device need not have."""

from collections.abc import Iterator
from dataclasses import dataclass

# Numbers of the fields of ModelProto, GraphProto, NodeProto and OperatorSetIdProto.
_GRAPH, _OPSET_IMPORT, _FUNCTIONS = 7, 8, 25
_NODE = 1
_OUTPUT, _NAME, _OP_TYPE, _DOMAIN = 2, 3, 4, 7
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Args:
        name: Its name.
        op: Its op, without the domain.
        outputs: Names of what it gives.
    """

    name: str
    op: str
    outputs: tuple[str, ...]


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


def _text(message: bytes, number: int) -> str:
    return "".join(field.content.decode() for field in _fields(message) if field.number == number)


def nodes_of(model: bytes, domain: str) -> list[Node]:
    """The nodes of a domain in the graph of a ModelProto, in order; those in functions are not among them."""
    found = []
    for part in _fields(model):
        if part.number != _GRAPH:
            continue
        for field in _fields(part.content):
            if field.number == _NODE and _text(field.content, _DOMAIN) == domain:
                outputs = tuple(entry.content.decode() for entry in _fields(field.content) if entry.number == _OUTPUT)
                found.append(Node(_text(field.content, _NAME), _text(field.content, _OP_TYPE), outputs))
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
