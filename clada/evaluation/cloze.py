"""Cloze task from held-out text: predict the next identifier, among those seen before.

The answer is one that the context holds already, so it can be known; the other candidates are further identifiers of
the context. One token may be all of an answer: the last tokens of the context are read in decode too, so that sparse
steps have read what the answer follows from.
"""

import itertools
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clada.evaluation.tasks import CANDIDATES, ITEMS_PER_ROW, Item, Row, shuffled_item

# Tokens before the answer that are read in decode.
CONTEXT_IN_DECODE = 32
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")


@dataclass(frozen=True)
class Identifier:
    """Occurrence of an identifier in a row.

    Args:
        name: The identifier.
        lead: Prefix of its first token: nothing, or white space.
        start: Index of its first token.
        stop: Index behind its last one.
    """

    name: str
    lead: str
    start: int
    stop: int


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> dict[int, str]:
    """Text of each token inside a text: some tokenizers strip white space from the first."""
    before = tokenizer("a", add_special_tokens=False).input_ids
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    skip = len(tokenizer.decode(before, **options))
    return {token: tokenizer.decode([*before, token], **options)[skip:] for token in set(tokens)}


def identifiers(texts: Sequence[str]) -> list[Identifier]:
    """Identifiers that are whole tokens of a row, in order, except the keywords of Python.

    Args:
        texts: The text of each token.
    """
    ends = list(itertools.accumulate(map(len, texts)))
    starts = [0, *ends[:-1]]
    token_at = {start: index for index, start in enumerate(starts) if texts[index]}
    token_behind = {end: index + 1 for index, end in enumerate(ends) if texts[index]}
    text = "".join(texts)
    found: list[Identifier] = []
    for match in _IDENTIFIER.finditer(text):
        if keyword.iskeyword(match.group()) or match.end() not in token_behind:
            continue
        begin = match.start()
        if begin not in token_at and text[begin - 1].isspace():
            begin -= 1
        if begin in token_at:
            lead = text[begin : match.start()]
            found.append(Identifier(match.group(), lead, token_at[begin], token_behind[match.end()]))
    return found


def _begins(one: Row, other: Row) -> bool:
    """Whether either name is a prefix of the other: the shorter would be likelier by being shorter."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _question(
    row: Row, index: int, before: Sequence[Identifier], answer: Identifier, random: np.random.Generator
) -> Item | None:
    """Create an item that asks for an identifier, if it and enough others came before it."""
    real = tuple(row[answer.start : answer.stop])
    others: dict[tuple[int, ...], None] = {}
    for other in before:
        if other.lead == answer.lead and other.name != answer.name:
            tokens = tuple(row[other.start : other.stop])
            if not any(_begins(tokens, known) for known in (real, *others)):
                others[tokens] = None
    if len(others) < CANDIDATES - 1 or all(other.name != answer.name for other in before):
        return None
    drawn = random.choice(len(others), CANDIDATES - 1, replace=False)
    distractors = [list(others)[at] for at in drawn]
    return shuffled_item(index, row[: answer.start], answer.start - CONTEXT_IN_DECODE, real, distractors, random)


def cloze_items(rows: Sequence[Row], tokenizer: Any, prompt_tokens: int, seed: int) -> list[Item]:
    """Create up to ITEMS_PER_ROW items of each row; none of a row that has too few identifiers.

    Args:
        rows: Token ids, equally many each.
        tokenizer: The Hugging Face tokenizer that made them.
        prompt_tokens: The fewest tokens of a context that are read densely.
        seed: Decides which identifiers are asked for, and the distractors.
    """
    random = np.random.default_rng(seed)
    texts = token_texts(tokenizer, [token for row in rows for token in row])
    items: list[Item] = []
    for index, row in enumerate(rows):
        places = identifiers([texts[token] for token in row])
        asked = [n for n, place in enumerate(places) if place.start >= prompt_tokens + CONTEXT_IN_DECODE]
        questions = (_question(row, index, places[:n], places[n], random) for n in random.permutation(asked))
        items += sorted(
            itertools.islice(filter(None, questions), ITEMS_PER_ROW), key=lambda question: len(question.context)
        )
    return items
