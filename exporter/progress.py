"""Progress of long work: a bar on terminals, elsewhere a line now and then."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from clada.command_line import is_quiet

T = TypeVar("T")

# Between two lines, seconds: a log stays short, and who waits knows that it goes on.
_SECONDS = 10.0


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items, and report on standard error which one it is and the estimated time of the others."""
    if sys.stderr is None or is_quiet():
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, leave=False, disable=None)
        return
    start = said = time.monotonic()
    for index, item in enumerate(items):
        now = time.monotonic()
        if index and now - said >= _SECONDS:
            left = (now - start) / index * (len(items) - index)
            print(f"  {what}: {index} of {len(items)}, about {left:.0f} s left", file=sys.stderr, flush=True)
            said = now
        yield item
