"""Status of a text on a terminal: in the terminal's title while it is written, in a line below it once it ends.

A line that stays below a text that grows has to be drawn over where the text wraps and the screen scrolls, and there
terminals differ in where the cursor is. A title disturbs no text, wherever in it the sequence falls.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from clada.runtime.telemetry import TokenStats, mean_stats

_INTERVAL = 0.1  # seconds between two titles
_NO_TITLE = ("", "dumb", "linux")
_PUSH, _POP = "\033[22;0t", "\033[23;0t"  # xterm's stack of titles


@dataclass(frozen=True)
class Room:
    """Room of a text.

    Args:
        prompt: Tokens of its prompt.
        context: Tokens that the context holds.
    """

    prompt: int
    context: int


def on_terminal() -> bool:
    """Whether standard error is a terminal, of a user who wants more than errors."""
    return sys.stderr is not None and sys.stderr.isatty()


def status(stats: Sequence[TokenStats], per_second: float, tokens: int, room: Room) -> str:
    """Status in a line: speed, load, bytes read, and how full the context is.

    Args:
        stats: Of the tokens that it is of.
        per_second: Tokens per second.
        tokens: Tokens that were generated.
        room: Of the text.
    """
    mean = mean_stats(stats)
    return (
        f"{per_second:.1f} tokens/s, load {mean.load:.2f}, {mean.read_fraction:.0%} of the bytes read, "
        f"{room.prompt + tokens:,} of {room.context:,} tokens"
    )


def dimmed(line: str) -> str:
    """A line as a terminal shows it beside what matters more."""
    return f"\033[2m{line}\033[0m" if _knows_sequences() else line


def _knows_sequences() -> bool:
    return os.environ.get("TERM", "") not in _NO_TITLE


@contextmanager
def live_title() -> Iterator[Callable[[Callable[[], str]], None]]:
    """Give a function that makes a line the terminal's title, some ten times a second, and wipe it at the end.

    Where there is no terminal that has one, that does nothing.
    """
    if not (on_terminal() and _knows_sequences()):
        yield lambda _: None
        return
    last = -_INTERVAL

    def show(line: Callable[[], str]) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _INTERVAL:
            last = now
            _write(f"\033]0;{line()}\a")

    _write(_PUSH)
    try:
        yield show
    finally:
        with suppress(OSError):
            # Empty where there is no stack, which is what was before on most.
            _write(f"\033]0;\a{_POP}")


def _write(sequence: str) -> None:
    print(sequence, end="", file=sys.stderr, flush=True)
