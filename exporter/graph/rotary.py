"""Rotary position embedding as ONNX Runtime's own op, one node in the place of ten, for every family alike."""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clada.exporter.graph.rewrites import DOMAIN

OP = "RotaryEmbedding"
# What transformers' attention layers call, in the module that defines them: with queries and keys T[B, H, S, d], and
# cosines and sines T[B, S, r], which turn the first r places of each head.
_FUNCTION = "apply_rotary_pos_emb"
_AXES = ("cos", "sin")
# Largest difference that rounding makes, as a share of the largest value, by the bytes of a number.
_ROUNDING = {4: 1e-4, 2: 2e-2}


@dataclass(frozen=True)
class Form:
    """How a model's code turns heads: its forms differ by family, and only a call tells which it is.

    Args:
        interleaved: Whether a pair that is turned is two neighbors, or a place and that half of the width later.
        alternating: Whether the angles come twice in a row each, or all of them twice over.
        backward: Whether pairs are turned the other way.
    """

    interleaved: bool
    alternating: bool
    backward: bool

    def angles(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines T[B, S, r / 2] of the pairs, each once."""
        once = slice(None, None, 2) if self.alternating else slice(None, cos.shape[-1] // 2)
        cos, sin = cos[..., once], sin[..., once]
        return cos, -sin if self.backward else sin

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """T[B, H, S, d], as the op turns x of that shape by the model's cosines and sines T[B, S, r]."""
        cos, sin = (angle.unsqueeze(1) for angle in self.angles(cos, sin))
        width = 2 * cos.shape[-1]
        head, rest = x[..., :width], x[..., width:]
        one, other = (head[..., ::2], head[..., 1::2]) if self.interleaved else head.chunk(2, dim=-1)
        pair = one * cos - other * sin, other * cos + one * sin
        return torch.cat([torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1), rest], -1)


FORMS = [Form(*flags) for flags in itertools.product((False, True), repeat=3)]


def _rotated(form: Form, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Node of the op for x T[1, H, S, d] and cosines and sines T[1, S, r]."""
    heads, length, width = x.shape[1:]
    turned = cos.shape[-1]
    wide = x.to(cos.dtype)  # some turn in float32 what is float16
    # The angles are those of the call's own tokens, not a table of all places: the first is the call's first.
    first = torch.zeros(1, dtype=torch.int64)
    attributes: dict[str, Any] = {"num_heads": heads, "rotary_embedding_dim": 0 if turned == width else turned}
    rows = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OP}",
        (wide.transpose(1, 2).flatten(2), first, *(angle[0] for angle in form.angles(cos, sin))),
        attributes | ({"interleaved": 1} if form.interleaved else {}),
        dtype=wide.dtype,
        shape=(1, length, heads * width),
        version=1,
    )
    return rows.unflatten(2, (heads, width)).transpose(1, 2).to(x.dtype)


def _apply(form: Form, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Replacement of `apply_rotary_pos_emb` of a form."""
    return _rotated(form, query, cos, sin), _rotated(form, key, cos, sin)


@dataclass(frozen=True)
class _Call:
    """A call of a model's function: what it was given, and what it returned."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    returned: Any

    def is_of(self, form: Form) -> bool:
        """Whether the op of this form gives what was returned."""
        given = [*self.args, *(self.options[name] for name in _AXES if name in self.options)]
        if len(given) != 4 or not all(isinstance(value, Tensor) for value in given):
            return False
        cos, sin = given[2:]
        if cos.ndim != 3 or cos.shape != sin.shape or self.options.get("unsqueeze_dim", 1) != 1:
            return False
        for x, theirs in zip(given[:2], self.returned, strict=True):
            if x.ndim != 4 or x.shape != theirs.shape or cos.shape[-1] > x.shape[-1]:
                return False
            difference = (form.turned(x, cos, sin).float() - theirs.float()).abs().max()
            if difference > _ROUNDING[x.element_size()] * theirs.float().abs().max():
                return False
        return True


@torch.no_grad()
def rotary_form(model: Any, module: ModuleType) -> Form | None:
    """Form of the function of a module of a model's code; None where the op stands for none that it has."""
    function: Callable[..., Any] = getattr(module, _FUNCTION)
    calls: list[_Call] = []

    def noted(*args: Any, **options: Any) -> Any:
        calls.append(_Call(args, options, function(*args, **options)))
        return calls[-1].returned

    setattr(module, _FUNCTION, noted)
    try:
        model(input_ids=torch.arange(1, 5)[None] % model.config.vocab_size, use_cache=False)
    finally:
        setattr(module, _FUNCTION, function)
    return next((form for form in FORMS if calls and all(call.is_of(form) for call in calls)), None)


@contextmanager
def rotary_ops(model: Any) -> Iterator[None]:
    """Make a model of one text traceable with the op, within the context; it cannot be run there."""
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    before = {module: getattr(module, _FUNCTION) for module in modules if hasattr(module, _FUNCTION)}
    forms = {module: rotary_form(model, module) for module in before}
    for module, form in forms.items():
        if form is not None:
            setattr(module, _FUNCTION, partial(_apply, form))
    try:
        yield
    finally:
        for module, function in before.items():
            setattr(module, _FUNCTION, function)
