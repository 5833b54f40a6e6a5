"""Parsing of JSON files into dataclasses: every key, type and range is checked against the fields' annotations."""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clada.errors import CladaError

T = TypeVar("T")

# Far beyond what a file of ours needs, and read in seconds.
_MOST_BYTES = 1 << 26
_MOST_DIGITS = 32

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


@dataclass(frozen=True)
class Within:
    """Bounds of a number, in `Annotated`: the least and the greatest value, both included."""

    low: float
    high: float


class WrongValueError(ValueError):
    """Invalid value: the key that holds it, and the reason."""


def shown(value: Any) -> str:
    """Format a value for an error message, cut short."""
    return _SHORT.repr(value)


def load(content: bytes) -> dict[str, Any]:
    """Parse the JSON of an untrusted file.

    Returns:
        The object that it holds; numbers are finite, keys occur once, texts can be printed.

    Raises:
        WrongValueError: It is not such an object, or is larger, or nested more deeply, than any file of ours.
    """
    if len(content) > _MOST_BYTES:
        raise WrongValueError(f"it has {len(content):,} bytes, and at most {_MOST_BYTES:,} are read")
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_int=_integer, parse_float=_number
        )
    except WrongValueError:
        raise
    except RecursionError as error:
        raise WrongValueError("it is nested too deeply") from error
    except ValueError as error:  # what is not UTF-8 too
        raise WrongValueError(f"it is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise WrongValueError("it holds no JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise WrongValueError(f"the key {shown(key)} occurs twice")
        if not key.isprintable():
            raise WrongValueError(f"the key {shown(key)} cannot be printed")
        found[key] = value
    return found


def _no_number(word: str) -> float:
    raise WrongValueError(f"it holds {word}, which is no number")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise WrongValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise WrongValueError(f"it holds {shown(digits)}, which is too large")
    return value


@functools.cache
def _fields_of(kind: Hashable) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass, by name."""
    dataclass_kind: Any = kind
    fields = dataclasses.fields(dataclass_kind)
    return get_type_hints(kind, include_extras=True), {field.name: field for field in fields}


def parse(kind: type[T], value: Any, key: str = "") -> T:
    """Parse a JSON object into a dataclass, checking each field's type and range.

    Fields may be of `str`, `int`, `float`, `bool`, `None`, `Literal`, `Annotated[..., Within(...)]`, a dataclass, a
    `tuple[..., ...]`, a `Mapping[str, ...]` or a union of those; what a dataclass checks itself, in `__post_init__`,
    it says by a WrongValueError.

    Args:
        kind: The dataclass.
        value: Object from `load`.
        key: Key of the object in the file; empty for the top level.

    Raises:
        WrongValueError: Names the key and what is wrong.
    """
    if not isinstance(value, dict):
        raise WrongValueError(f"{key} is {shown(value)}, and must be an object")
    hints, fields = _fields_of(kind)  # type: ignore[arg-type]  # a class can be hashed
    of_key = f" of {key}" if key else ""
    for name in value:
        if name not in fields:
            raise WrongValueError(f"the key {shown(name)}{of_key} is not known")
    given: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _convert(hints[name], value[name], f"{key}.{name}" if key else name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise WrongValueError(f"the key '{name}'{of_key} is missing")
    try:
        return kind(**given)
    except WrongValueError as error:
        raise WrongValueError(f"{key}.{error}" if key else str(error)) from error


def _convert(kind: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = _convert(arguments[0], value, key)
        for limits in arguments[1:]:
            if not limits.low <= number <= limits.high:
                raise WrongValueError(f"{key} is {shown(number)}, and must lie from {limits.low:g} to {limits.high:g}")
        return number
    if origin is Literal:
        if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in arguments):
            raise WrongValueError(f"{key} is {shown(value)}, and must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise WrongValueError(f"{key} is {shown(value)}, and must be a list")
        return tuple(_convert(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is not None:  # a mapping
        if not isinstance(value, dict):
            raise WrongValueError(f"{key} is {shown(value)}, and must be an object")
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        dataclass_kind: Any = kind
        return parse(dataclass_kind, value, key)
    return _convert_plain(kind, value, key)


def _convert_union(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    for kind in others[:-1]:
        if isinstance(value, kind):
            return _convert(kind, value, key)
    return _convert(others[-1], value, key)


def _convert_plain(kind: type, value: Any, key: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise WrongValueError(f"{key} is {shown(value)}, and must be {names[kind]}")
    if isinstance(value, str) and not value.isprintable():
        raise WrongValueError(f"{key} is {shown(value)}, which cannot be printed")
    return value


def plain(value: Any) -> Any:
    """JSON form of a dataclass: an optional field that is None is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        items = [(field, getattr(value, field.name)) for field in fields]
        return {field.name: plain(item) for field, item in items if item is not None or field.default is not None}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def read_bytes(path: Path) -> bytes:
    """Read the content of a file.

    Raises:
        CladaError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CladaError(f"cannot read {path}: {error.strerror or error}") from error
