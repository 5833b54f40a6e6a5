"""Rotary frequencies that depend on a text's length, in traceable form: by the length of each text itself.

transformers chooses them by a branch on the longest text of a call, and keeps them for the next.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from clada.errors import CladaError

Frequencies = Callable[[Any, Tensor], Tensor]


def _longrope(module: Any, length: Tensor) -> Tensor:
    """Choose one of two sets, i64[B] lengths to f32[B, r / 2], by the length of pretraining."""
    original = module.config.rope_parameters["original_max_position_embeddings"]
    beyond, _ = ROPE_INIT_FUNCTIONS[module.rope_type](module.config, seq_len=original + 1)
    return torch.where(length.unsqueeze(-1) > original, beyond, module.original_inv_freq.float())


def _dynamic(module: Any, length: Tensor) -> Tensor:
    """NTK-aware scaling of the base with the length, i64[B] lengths to f32[B, r / 2]."""
    parameters, original = module.config.rope_parameters, module.config.max_position_embeddings
    factor, width = parameters["factor"], 2 * module.original_inv_freq.shape[-1]
    longest = length.clamp_min(original).unsqueeze(-1).float()
    base = parameters["rope_theta"] * (factor * longest / original - (factor - 1)) ** (width / (width - 2))
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


# Fields of a configuration that name the context length, and what it is where a model type has none of them.
_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")
_UNNAMED_LENGTHS = {"bloom": 2048}
# By the rope type of transformers; those that are not here do not depend on the length.
_BY_LENGTH: dict[str, Frequencies] = {"dynamic": _dynamic, "longrope": _longrope}


def _rotary_modules(model: nn.Module) -> list[Any]:
    # Where a model's layers differ in it, it is a mapping; see `check_rope`.
    return [module for module in model.modules() if isinstance(getattr(module, "rope_type", None), str)]


def context_length(config: Any) -> int:
    """Maximum number of tokens a model reads: with dynamic frequencies, `factor` times its training length.

    Raises:
        CladaError: The configuration does not say.
    """
    length = next((getattr(config, name) for name in _LENGTHS if getattr(config, name, None) is not None), None)
    if length is None:
        length = _UNNAMED_LENGTHS.get(config.model_type)
    if length is None:
        raise CladaError(f"the configuration names no context length: it has none of {', '.join(_LENGTHS)}")
    parameters = getattr(config, "rope_parameters", None) or {}
    return int(length * parameters["factor"] if parameters.get("rope_type") == "dynamic" else length)


def check_rope(config: Any) -> None:
    """Raise CladaError for a model whose rotary frequencies cannot be traced for every length."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [part for part in parameters.values() if isinstance(part, dict)]
    types = [part.get("rope_type", "default") for part in by_layer or [parameters]]
    for kind in types:
        if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
            known = ", ".join(["default", *ROPE_INIT_FUNCTIONS])
            raise CladaError(f"rope type '{kind}' is not known; known are: {known}")
        if by_layer and kind in _BY_LENGTH:
            raise CladaError(f"rope type '{kind}' for some of a model's layers is not supported")


def _forward(module: Any, frequencies: Frequencies, x: Tensor, position_ids: Tensor) -> Any:
    """Output of the module's own forward for x and position_ids i64[B, S], with the frequencies of each text."""
    twin = copy.copy(module)
    twin._buffers = {}
    twin.inv_freq = frequencies(module, position_ids.amax(-1) + 1).unsqueeze(1)  # [B, 1, r / 2]
    return inspect.unwrap(type(module).forward)(twin, x, position_ids)


@contextmanager
def rope_by_length(model: nn.Module) -> Iterator[None]:
    """Make a model's rotary frequencies traceable, within the context, whatever they depend on."""
    changed = [module for module in _rotary_modules(model) if module.rope_type in _BY_LENGTH]
    for module in changed:
        module.forward = partial(_forward, module, _BY_LENGTH[module.rope_type])
    try:
        yield
    finally:
        for module in changed:
            del module.forward
