"""Batches that texts join and leave: texts of several states, put together into one."""

from collections.abc import Sequence

import numpy as np

from clada.contract.pool import Masks
from clada.runtime.models.base import Array, Model
from clada.runtime.models.ort_cpu import OnnxRuntimeModel
from clada.runtime.steps import Reader, State


def can_gather(reader: Reader) -> bool:
    """Whether texts of several states can be read as one batch: not where pools are chosen, nor on a GPU."""
    return reader.pool_policy is None and isinstance(reader.models.of("single"), OnnxRuntimeModel)


def cpu_graph(model: Model) -> OnnxRuntimeModel:
    """Graph with a cache that can be read and made here, as all of a reader are that `can_gather`."""
    assert isinstance(model, OnnxRuntimeModel)
    return model


def gather(reader: Reader, texts: Sequence[tuple[State, int]]) -> State:
    """Put texts together: one alone on the graph for one text, several on the portable graph.

    Keys and values are copied, as the portable graph does at each of its steps. What was padding is left out.

    Args:
        reader: The one that made the states, and `can_gather`.
        texts: States, and which text of each; all of them go on.

    Raises:
        CladaError: Another thread reads a state on, or it cannot go on.
    """
    model = cpu_graph(reader.models.of("single" if len(texts) == 1 else "portable"))
    lengths = [int(state.mask[row].sum()) for state, row in texts]
    longest = max(lengths)
    mask = np.zeros((len(texts), longest), np.int64)
    arrays: list[Array] = []
    held: dict[int, list[Array]] = {}
    for place, ((state, row), length) in enumerate(zip(texts, lengths, strict=True)):
        if id(state) not in held:
            with state.reading():
                held[id(state)] = cpu_graph(state.model).read_cache(state.cache)
        if not arrays:
            arrays = [np.zeros((len(texts), old.shape[1], longest, old.shape[3]), old.dtype) for old in held[id(state)]]
        mask[place, longest - length :] = 1
        for new, old in zip(arrays, held[id(state)], strict=True):
            # Of a text that goes on, padding is on the left.
            new[place, :, longest - length :] = old[row, :, old.shape[2] - length :]
    masks: Masks = [
        np.stack([state.masks[layer][row] for state, row in texts]) for layer in range(len(texts[0][0].masks))
    ]
    logits = np.stack([state.logits[row] for state, row in texts])
    efforts = [None if state.effort is None else state.effort[row] for state, row in texts]
    effort = None if efforts[0] is None else np.array(efforts, np.float32)
    return State(model, model.load_cache(arrays), masks, mask, logits, effort=effort)
