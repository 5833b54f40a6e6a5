"""Rotary position embedding as ONNX Runtime's own op, one node in the place of ten, for every family alike."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clada.exporter.graph.rewrites import DOMAIN

OP = "RotaryEmbedding"
# What transformers' attention layers call, in the module that defines them.
_FUNCTION = "apply_rotary_pos_emb"


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Node of the op for x T[1, H, S, d] and cosines and sines T[S, r / 2], which rotate the first r places."""
    heads, length, width = x.shape[1:]
    turned = 2 * cos.shape[-1]
    # The angles are those of the call's own tokens, not a table of all places: the first is the call's first.
    first = torch.zeros(1, dtype=torch.int64)
    rows = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OP}",
        (x.transpose(1, 2).flatten(2), first, cos, sin),
        {"num_heads": heads, "rotary_embedding_dim": 0 if turned == width else turned},
        dtype=x.dtype,
        shape=(1, length, heads * width),
        version=1,
    )
    return rows.unflatten(2, (heads, width)).transpose(1, 2)


def _apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Replacement of `apply_rotary_pos_emb`, for cosines and sines T[1, S, r] whose second half repeats the first."""
    half = cos.shape[-1] // 2
    cos, sin = cos[0, :, :half], sin[0, :, :half]
    return _rotated(query, cos, sin), _rotated(key, cos, sin)


@contextmanager
def rotary_ops(model: Any) -> Iterator[None]:
    """Make a model of one text traceable with the op, within the context; it cannot be run there."""
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    before = {module: getattr(module, _FUNCTION) for module in modules if hasattr(module, _FUNCTION)}
    for module in before:
        setattr(module, _FUNCTION, _apply)
    try:
        yield
    finally:
        for module, function in before.items():
            setattr(module, _FUNCTION, function)
