"""Cache of prompts that were read: of one that begins as an earlier one, the rest alone is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from clada.runtime.models.ort_cpu_in_place import capacity_for
from clada.runtime.prefix import Prefix, prefill_after
from clada.runtime.steps import Reader, State

# Fewer tokens are read as quickly as they are copied.
_FEWEST = 16
# The last tokens of a prompt, which are read in any case: one alone would be decoded.
_READ = 2


@dataclass(frozen=True)
class _Kept:
    tokens: npt.NDArray[np.int64]
    state: State
    room: int


class PrefixCache:
    """Prompts that were read last, as many as a number of tokens allows; for one thread.

    Args:
        reader: Reader of the prompts; one that can go back in a text.
        most_tokens: Tokens that there is room for, with those that a KV cache has room for beyond its text; 0 for none.
    """

    def __init__(self, reader: Reader, most_tokens: int) -> None:
        self._reader, self._most_tokens = reader, most_tokens
        self._kept: list[_Kept] = []  # what was used last is at the end

    @property
    def tokens(self) -> int:
        """Tokens that the kept prompts have room for."""
        return sum(kept.room for kept in self._kept)

    def find(self, prompt: Sequence[int]) -> tuple[Prefix, int]:
        """Copy the prompt that is longest alike; returns it, and how many tokens need not be read again."""
        ids = np.array(prompt[:-_READ], np.int64)
        alike = [_alike(kept.tokens, ids) for kept in self._kept]
        best = max(range(len(alike)), key=alike.__getitem__, default=-1)
        if best < 0 or alike[best] < _FEWEST:
            return Prefix(), 0
        self._kept.append(self._kept.pop(best))
        found = self._kept[-1]
        return Prefix(found.tokens.tolist(), found.state.copy()), alike[best]

    def keep(self, prompt: Sequence[int], state: State) -> None:
        """Keep a copy of the state of a prompt that was just read, and let go of what was not used for longest."""
        ids = np.array(prompt, np.int64)
        room = capacity_for(len(ids), self._reader.context_length)
        if len(ids) < _FEWEST or room > self._most_tokens:
            return
        if any(_alike(kept.tokens, ids) == len(ids) for kept in self._kept):
            return
        # Those that this one begins with are in it.
        self._kept = [kept for kept in self._kept if _alike(kept.tokens, ids) < len(kept.tokens)]
        while self._kept and self.tokens + room > self._most_tokens:
            del self._kept[0]
        self._kept.append(_Kept(ids, state.copy(), room))


def _alike(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """Number of tokens that two texts begin with alike."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


def read_in_parts(
    reader: Reader, prefix: Prefix, alike: int, prompt: Sequence[int], part: int
) -> Iterator[State | None]:
    """Read a prompt after a prefix, some tokens at a time; yields None after each part, and at last the state.

    Args:
        reader: Reader that can go back in a text.
        prefix: Copy of what was read of another prompt.
        alike: Number of tokens that are alike.
        prompt: Token ids.
        part: Tokens at a time.

    Raises:
        CladaError: As of `Reader.prefill`.
    """
    ends = [*range(alike + part, len(prompt) - _READ + 1, part), len(prompt)]
    state = prefill_after(reader, prefix, prompt[: ends[0]])
    for start, end in pairwise(ends):
        yield None
        if not reader.reread(state, start, prompt[start:end]):
            state = reader.prefill([prompt[:end]])
    yield state
