"""Budget of a template's computations: every step is counted, every value measured, large ones before they are made."""

import json
import re
import time
from collections.abc import Callable, ItemsView, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from itertools import islice
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

_SECONDS = 10.0
_STEPS = 300_000
# Weight of one value, and of one text, beside so many times what was given; and of all values together.
_SIZE = 1_000_000
_TIMES_GIVEN = 4
_VALUES = 32
# Of a width, a count or a precision; of a power or product in bits.
_LARGEST_NUMBER = 100_000
_LARGEST_BITS = 10_000
# An item beside its content, as a character is one: what it takes in memory, about.
_ITEM = 8
# What adding up lists may copy.
_COPIED = 50_000_000

_PADDING_METHODS = ("center", "ljust", "rjust", "zfill", "to_bytes")
_NUMBER_FILTERS = ("batch", "center", "indent", "round", "slice", "truncate", "wordwrap")


class TooMuchError(TemplateRuntimeError):
    """Error of a template that exceeds its budget."""


def weigh(value: Any, most: int) -> int:
    """Number of characters and items of a value, nested ones included; counting stops beyond `most`."""
    if isinstance(value, str):
        return len(value) + _ITEM
    weight, rest = 0, [value]
    while rest and weight <= most:
        item = rest.pop()
        weight += _ITEM
        if isinstance(item, str | bytes):
            weight += len(item)
        elif isinstance(item, int):
            weight += item.bit_length() // 8
        elif isinstance(item, Mapping):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            rest += item
        elif isinstance(item, Namespace):
            rest += object.__getattribute__(item, "_Namespace__attrs").values()
    return weight


class Budget:
    """Remaining budget of one rendering.

    Args:
        given: Variables of the template.
    """

    def __init__(self, given: Any) -> None:
        size = weigh(given, 1 << 40)
        self.largest = _SIZE + _TIMES_GIVEN * size
        self._steps, self._values, self._written = _STEPS + size, _VALUES * self.largest, self.largest
        self._deadline = time.monotonic() + _SECONDS

    def step(self) -> None:
        """Count a call, an operation or an iteration of a loop."""
        self._steps -= 1
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise TooMuchError("it takes too many steps")

    def fit(self, size: int) -> None:
        """Refuse a value of too large a size."""
        if size > self.largest:
            raise TooMuchError(f"it makes a value of more than {self.largest:,} characters")

    def made(self, value: Any) -> Any:
        """Count a value that was made, and return it."""
        self.fit(weigh(value, self.largest))
        self._values -= len(value) if isinstance(value, str | bytes | list | tuple | dict) else 1
        if self._values < 0:
            raise TooMuchError("it makes too many values")
        return value

    def wrote(self, value: Any) -> Any:
        """Count a value that is written into the text, and return it."""
        self.step()
        self.wrote_size(weigh(value, self.largest))
        return value

    def wrote_size(self, size: int) -> None:
        """Count text that is written."""
        self._written -= size
        if self._written < 0:
            raise TooMuchError("its text is too long")

    def operation(self, operator: str, left: Any, right: Any) -> None:
        """Refuse an operation whose result would be too large."""
        self.step()
        if operator == "%" and isinstance(left, str):
            self._format(left, "%", "*", right)
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(sequence, str | bytes | list | tuple):
                    self.fit(weigh(sequence, self.largest) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int):
                self._bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() * abs(right))
        elif operator == "+" and isinstance(left, str | list | tuple):
            self.fit(len(left) + (len(right) if isinstance(right, str | list | tuple) else 0))

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Refuse a call whose result would be too large; returns the arguments to call it with."""
        self.step()
        text, name = getattr(getattr(function, "__wrapped__", function), "__self__", None), _name(function)
        if name in _PADDING_METHODS:
            self._numbers(args)
        if not isinstance(text, str | bytes):
            return args
        if name in ("format", "format_map") and isinstance(text, str):
            self._format(text, "{", "{", [args, kwargs])
        elif name == "replace":
            self._replace(text, args)
        elif name == "expandtabs":
            self.fit(len(text) * max([8, *(abs(n) for n in (*args, *kwargs.values()) if isinstance(n, int))]))
        elif name == "translate":
            self.fit(len(text) * weigh(args, self.largest))
        elif name == "join" and len(args) == 1:
            return (self._joined(args[0], text),)
        return args

    def filter(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Refuse a filter whose result would be too large; returns the value to apply it to."""
        self.step()
        options = [*args, *kwargs.values()]
        if name in _NUMBER_FILTERS:
            self._numbers(options)
        if name == "format":
            self._format(str(value), "%", "*", options)
        elif name == "replace":
            self._replace(str(value), [str(option) for option in options])
        elif name == "indent":
            width = next((len(o) if isinstance(o, str) else o for o in options if not isinstance(o, bool)), 4)
            self.fit((len(str(value).splitlines()) + 1) * abs(width))
        elif name in ("urlize", "wordwrap") and options:
            self.fit(len(str(value)) * max(len(o) if isinstance(o, str) else 1 for o in options))
        elif name == "join":
            return self._joined(value, options[0] if options else "")
        elif name == "sum":
            value = self._items(value)
            if any(isinstance(item, list | tuple) for item in [*value, *options]):
                self.fit(self.largest * len(value) * weigh(value, self.largest) // _COPIED)
        return value

    def json(self, value: Any, encoder: json.JSONEncoder) -> str:
        """Encode as JSON, no further than is allowed."""
        pieces, size = [], 0
        for piece in encoder.iterencode(value):
            size += len(piece)
            self.fit(size)
            pieces.append(piece)
        return "".join(pieces)

    def _numbers(self, options: Sequence[Any]) -> None:
        for option in options:
            if isinstance(option, int) and abs(option) > _LARGEST_NUMBER:
                raise TooMuchError(f"it asks for a width or count of {option:.3g}")

    def _bits(self, bits: int) -> None:
        if bits > _LARGEST_BITS:
            raise TooMuchError("it computes with numbers of thousands of digits")

    def _items(self, values: Any) -> list[Any]:
        items = list(islice(values, self.largest + 1))
        self.fit(weigh(items, self.largest))
        return items

    def _joined(self, values: Any, between: Any) -> list[Any]:
        items = self._items(values)
        self.fit(weigh(items, self.largest) + len(items) * weigh(between, self.largest))
        return items

    def _replace(self, text: Any, options: Sequence[Any]) -> None:
        """Refuse a replacement of the first option by the second whose result would be too large."""
        if len(options) >= 2 and isinstance(options[0], type(text)) and isinstance(options[1], type(text)):
            old, new = options[:2]
            self.fit(len(text) + text.count(old) * len(new))

    def _format(self, text: str, field: str, width_given: str, values: Any) -> None:
        """Refuse a formatted text that would be too large: a field may be as wide as any number given."""
        widths = [0, *(int(digits[:9]) for digits in re.findall(r"\d+", text))]
        fields = text.count(field)
        if width_given in text and fields > (field == width_given):
            widths += _integers(values)
        self.fit(len(text) + fields * (weigh(values, self.largest) + max(widths)))


def _name(function: Any) -> str:
    name = getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""


def _integers(values: Any) -> list[int]:
    """Integers in nested arguments, as many as can be examined quickly."""
    found: list[int] = []
    rest = [values]
    while rest and len(found) < 1000:
        item = rest.pop()
        if isinstance(item, int):
            found.append(abs(item))
        elif isinstance(item, Mapping):
            rest += item.values()
        elif isinstance(item, list | tuple):
            rest += item
    return found


_current: ContextVar[Budget] = ContextVar("budget")


def budget() -> Budget:
    """Budget of the current rendering."""
    return _current.get()


def within(allowed: Budget, work: Callable[[], str]) -> str:
    """Set the budget, within the context, of a rendering."""
    token = _current.set(allowed)
    try:
        return work()
    finally:
        _current.reset(token)
