"""Exhaustive cases that multiply those of others: `make test-all` runs them, `make test` does not."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

exhaustive = pytest.mark.exhaustive


def few(cases: Iterable[Any], usual: Sequence[Any]) -> list[Any]:
    """Values for `parametrize`, of which only the usual ones are tried unless all are requested."""
    every = list(cases)
    assert all(case in every for case in usual), usual
    return [
        case if case in usual else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=exhaustive)
        for case in every
    ]


def in_turn(first: Iterable[Any], second: Sequence[Any]) -> list[Any]:
    """All pairs for `parametrize`; usual are each of the first with one of the second, which take turns."""
    ones = list(first)
    return few(itertools.product(ones, second), list(zip(ones, itertools.cycle(second))))
