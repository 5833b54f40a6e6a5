"""Prompts that begin as the one before: what was read of that is not read again."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from clada.runtime.steps import Reader, State

# What is read as a prompt, densely, has two tokens or more: one after others is decoded.
_FEWEST = 2


@dataclass
class Prefix:
    """Last prompt of several that begin alike, as those of a conversation do; at first there is none.

    It holds the keys and values of one text, and is for one session and for one thread at a time.

    Args:
        tokens: Ids of that prompt.
        state: State of its text, which has gone on since; None where nothing was read.
    """

    tokens: list[int] = field(default_factory=list)
    state: State | None = None


def prefill_after(reader: Reader, prefix: Prefix, prompt: Sequence[int]) -> State:
    """Read a prompt densely, but for the tokens with which it begins as the one before.

    What was generated after that was read sparsely, and is read again where it is part of this prompt: the state is,
    up to rounding, the one of `Reader.prefill`, except that rotary angles that depend on a text's length stay those
    of when a token was read, as in decode.

    Args:
        reader: The same for all prompts of a prefix.
        prefix: Brought up to date.
        prompt: Its token ids.

    Raises:
        CladaError: As of `Reader.prefill`; nothing is kept then.
    """
    state, prefix.state = prefix.state, None
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prefix.tokens, prompt, strict=False))
    kept = min(sum(1 for _ in alike), len(prompt) - _FEWEST)
    if state is None or state.broken or kept < 1 or not reader.reread(state, kept, prompt[kept:]):
        state = reader.prefill([prompt])
    prefix.tokens, prefix.state = list(prompt), state
    return state
