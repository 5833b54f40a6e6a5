"""Calls in a process of their own, whose memory is free again afterwards."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_own_process(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call a function in a fresh process; it, its arguments and its result can be sent to another process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments, **options).result()
