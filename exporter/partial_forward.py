"""Runs part of a causal LM: up to a layer's input, or from it to the logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clada.exporter.patch import decoder_layers


class _Reached(Exception):  # noqa: N818 - not an error: it ends a pass that has gone far enough
    """Raised by a hook at the module whose input was wanted."""


@contextmanager
def _from_layer(model: nn.Module, layer: int, hidden: Tensor | None) -> Iterator[None]:
    """Within the context the layers below `layer` do nothing and hand it `hidden`."""
    skipped = list(decoder_layers(model))[:layer]
    for module in skipped:
        module.forward = lambda *_args, **_kwargs: hidden
    try:
        yield
    finally:
        for module in skipped:
            del module.forward


@torch.no_grad()
def input_of(model: Any, target: nn.Module, input_ids: Tensor, layer: int = 0, hidden: Tensor | None = None) -> Tensor:
    """What reaches a module; nothing after it is computed.

    Args:
        model: A causal LM.
        target: The module.
        input_ids: i64[B, S].
        layer: Index of the decoder layer to start at.
        hidden: That layer's input [B, S, D]; not needed for layer 0.
    """
    reached: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = target.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with _from_layer(model, layer, hidden):
            model(input_ids=input_ids, use_cache=False)
    except _Reached:
        return reached[0]
    finally:
        handle.remove()
    raise AssertionError("the model never called the module")


@torch.no_grad()
def logits_from(model: Any, input_ids: Tensor, layer: int = 0, hidden: Tensor | None = None) -> Tensor:
    """Logits [B, S, V] of a pass that starts at a layer's input; arguments as of `input_of`."""
    with _from_layer(model, layer, hidden):
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits
