"""Stand-in for the processes in which benchmarks write their models: this one, where graphs are traced once."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with what another process would get."""
    function, arguments = pickle.loads(pickle.dumps((function, arguments)))
    return pickle.loads(pickle.dumps(function(*arguments)))


@contextmanager
def written_here(*modules: ModuleType) -> Iterator[None]:
    """Have these modules write their models in this process: in a fresh one torch takes seconds to load."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "in_own_process", _here)
        yield
