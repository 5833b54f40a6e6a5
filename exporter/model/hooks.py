"""Hooks on a model's modules that are removed when their context ends, whatever ended it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def registered(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within the context the hooks of these handles run; after it they are removed."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def shown_inputs(modules: Sequence[nn.Module], show: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the context the input T[..., D] of each module is shown to a function of its place and it."""
    with registered(
        module.register_forward_pre_hook(lambda _module, args, place=place: show(place, args[0]))
        for place, module in enumerate(modules)
    ):
        yield
