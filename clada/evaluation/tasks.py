"""Multiple-choice task from held-out text: find the real one of several continuations.

Candidates are scored by the log-likelihood that the subject gives their tokens, summed. The context is read densely
but for its end, which is read in decode: so all of a candidate's tokens are predicted by steps that are sparse, and
none by the dense prefill.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clada.evaluation.scores import log_likelihoods
from clada.evaluation.subject import Subject

CANDIDATES = 4
ITEMS_PER_ROW = 4
_CONTINUATION_TOKENS = 12
_TRIES = 50

Row = Sequence[int]


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        row: Index of the row it was made from.
        context: Token ids.
        prompt_tokens: Number of them that are read densely.
        candidates: Token ids of each possible ending.
        right: Index of the real one.
    """

    row: int
    context: tuple[int, ...]
    prompt_tokens: int
    candidates: tuple[tuple[int, ...], ...]
    right: int


def shuffled_item(
    row: int,
    context: Row,
    prompt_tokens: int,
    real: tuple[int, ...],
    distractors: Sequence[tuple[int, ...]],
    random: np.random.Generator,
) -> Item:
    """Put the real ending at a random place among the candidates: a model that finds all the same must not be right."""
    candidates = list(distractors)
    right = int(random.integers(len(candidates) + 1))
    candidates.insert(right, real)
    return Item(row, tuple(context), prompt_tokens, tuple(candidates), right)


def _distractors(
    rows: Sequence[Row], index: int, begin: int, real: tuple[int, ...], random: np.random.Generator
) -> list[tuple[int, ...]]:
    """Different continuations from other rows, from any place after their prompts; few in a text that repeats."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(_TRIES):
        other = rows[(index + int(random.integers(1, len(rows)))) % len(rows)]
        start = int(random.integers(begin, len(other) - len(real) + 1))
        found[tuple(other[start : start + len(real)])] = None
        found.pop(real, None)
        if len(found) == CANDIDATES - 1:
            break
    return list(found)


def choice_items(rows: Sequence[Row], prompt_tokens: int, seed: int) -> list[Item]:
    """Create up to ITEMS_PER_ROW items of each row, their contexts ending evenly spread after its prompt.

    Args:
        rows: Token ids, equally many each.
        prompt_tokens: The fewest tokens of a context that are read densely.
        seed: Decides the distractors.
    """
    random = np.random.default_rng(seed)
    last = len(rows[0]) - _CONTINUATION_TOKENS
    if last <= prompt_tokens:
        return []
    items: list[Item] = []
    for index, row in enumerate(rows):
        for end in np.unique(np.linspace(prompt_tokens + 1, last, ITEMS_PER_ROW).astype(int)).tolist():
            real = tuple(row[end : end + _CONTINUATION_TOKENS])
            distractors = _distractors(rows, index, prompt_tokens, real, random)
            if len(distractors) == CANDIDATES - 1:
                items.append(shuffled_item(index, row[:end], end - 1, real, distractors, random))
    return items


def is_right(subject: Subject, item: Item) -> bool:
    """Whether the subject finds the real ending likeliest."""
    readings = subject.read_endings(item.context, item.prompt_tokens, item.candidates)
    sums = [log_likelihoods(of, ending).sum() for of, ending in zip(readings, item.candidates, strict=True)]
    return int(np.argmax(sums)) == item.right
