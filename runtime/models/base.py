"""Loaded graph, on any backend: its sizes, its KV cache, and one step of it."""

import ctypes
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.contract.pool import Floats, HostScore, RunningScore
from clada.ops import graph_names

Array = npt.NDArray[Any]
_PAST = graph_names.past(0)[0].partition("0")[0]


class Model(ABC):
    """Loaded graph, for any number of texts.

    Several threads may run it at the same time, each within `turn` and with a cache of its own.

    Args:
        inputs: Shape and type of each input by name; sizes that change are not numbers, or negative.
        kernels: Kernels that run the ops.

    Attributes:
        layers: Number of layers that have a cache.
        by_input: Whether inputs of all products are skipped, as much as the input `effort` says; otherwise neurons are.
        neurons: Number of neurons of each layer that skips them.
    """

    def __init__(self, inputs: Mapping[str, tuple[Sequence[Any], npt.DTypeLike]], kernels: str) -> None:
        self.kernels = kernels
        self.process = os.getpid()
        _LOADED.add(self)
        self.turn: AbstractContextManager[Any] = nullcontext()
        self.layers = sum(name.startswith(_PAST) for name in inputs) // len(graph_names.past(0))
        self.by_input = graph_names.EFFORT in inputs
        self.neurons = [] if self.by_input else [int(inputs[graph_names.pool(n)][0][1]) for n in range(self.layers)]
        logits_shape, logits_type = inputs[graph_names.PAST_LOGITS]
        self.vocabulary, self.dtype = int(logits_shape[1]), np.dtype(logits_type)
        self._past = [name for n in range(self.layers) for name in graph_names.past(n)]
        self._present = [name for n in range(self.layers) for name in graph_names.present(n)]
        self._cache_sizes = [(int(inputs[name][0][1]), int(inputs[name][0][3])) for name in self._past]

    @abstractmethod
    def empty_cache(self, texts: int) -> Any:
        """Create a cache of no tokens."""

    @abstractmethod
    def copy_cache(self, cache: Any) -> Any:
        """Copy a cache, so that steps from it leave the original unchanged."""

    def rewind_cache(self, cache: Any, tokens: int) -> Any:
        """Cut the cache of one text down to its first tokens; None where that cannot be. What was given is used up."""
        return None

    def _no_tokens(self, texts: int) -> list[Array]:
        """Keys and values T[B, H, 0, d] of no tokens, those of each layer in turn."""
        return [np.zeros((texts, heads, 0, width), self.dtype) for heads, width in self._cache_sizes]

    def scores(self, outputs: Mapping[str, Any]) -> Any:
        """Scores of all layers among the outputs of a decode step, as `running_score` takes them."""
        return [outputs[graph_names.score(layer)] for layer in range(len(self.neurons))]

    def running_score(self, score: list[Floats]) -> RunningScore:
        """Create a running score that adds the results of `scores`, starting at f32[B, F] for each layer."""
        return HostScore(score)

    @abstractmethod
    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """Run the graph once.

        Args:
            inputs: Every input but the cache, by name.
            cache: From `empty_cache`, `copy_cache` or the step before.
            fetch: Names of the outputs wanted.

        Returns:
            Those outputs, and the cache for the next step.
        """


_LOADED: "weakref.WeakSet[Model]" = weakref.WeakSet()


def _keep_in_child() -> None:
    """Keep the parent's graphs alive after fork(): freeing them waits for threads that are not in the child."""
    for model in list(_LOADED):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))


if hasattr(os, "register_at_fork"):  # where there is fork()
    os.register_at_fork(after_in_child=_keep_in_child)
