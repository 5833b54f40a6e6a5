"""Crossover of the two ways to decode several texts: as a batch where they are short, in turns where they are long."""

import time
from dataclasses import dataclass

import numpy as np

from clada.runtime.batch import cpu_graph
from clada.runtime.loading import Kind
from clada.runtime.steps import Reader, State

# A batch reads the weights once for all of its texts; keys and values it copies in each step, and texts alone do not.
_TEXTS = 4
_SHORT, _LONG = 16, 512  # tokens
_ROUNDS = 3


@dataclass(frozen=True)
class Crossover:
    """Length up to which texts are decoded faster as a batch.

    Args:
        tokens: That of four texts; 0 where a batch is never faster.
    """

    tokens: float

    def longest(self, texts: int) -> float:
        """Length for a number of texts: what a batch saves is of all but one of them, what it costs is of all."""
        return self.tokens * (1 - 1 / texts) / (1 - 1 / _TEXTS)


def measure_crossover(reader: Reader) -> Crossover:
    """Time steps of both ways, on texts of zeros, which take as long as others.

    Raises:
        CladaError: The graphs cannot be loaded, or fail.
    """
    long = min(_LONG, reader.context_length // 2)
    gain, gain_of_long = _gain(reader, min(_SHORT, long)), _gain(reader, long)
    if gain <= 0:
        return Crossover(0)
    if gain_of_long >= gain or long <= _SHORT:
        return Crossover(reader.context_length)
    return Crossover(_SHORT + gain / (gain - gain_of_long) * (long - _SHORT))


def _gain(reader: Reader, tokens: int) -> float:
    """Seconds that a step of a batch is faster than one of each text."""
    alone = [_blank(reader, "single", 1, tokens) for _ in range(_TEXTS)]
    batch = _blank(reader, "portable", _TEXTS, tokens)
    in_turns, together = [], []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        for state in alone:
            reader.decode(state, [0])
        between = time.perf_counter()
        reader.decode(batch, [0] * _TEXTS)
        in_turns.append(between - begun)
        together.append(time.perf_counter() - between)
    return min(in_turns) - min(together)


def _blank(reader: Reader, kind: Kind, texts: int, tokens: int) -> State:
    """State of texts whose keys and values are zeros."""
    model = cpu_graph(reader.models.of(kind))
    empty = model.read_cache(model.empty_cache(texts))
    zeros = [np.zeros((texts, array.shape[1], tokens, array.shape[3]), array.dtype) for array in empty]
    return State(
        model,
        model.load_cache(zeros),
        [np.ones((texts, neurons), np.bool_) for neurons in model.neurons],
        np.ones((texts, tokens), np.int64),
        np.zeros((texts, model.vocabulary), model.dtype),
        effort=np.full(texts, reader.effort, np.float32) if model.by_input else None,
    )
