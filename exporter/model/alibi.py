"""Biases by distance (ALiBi) that a model cuts to the length of its texts, in traceable form.

MPT makes biases for its whole context, and takes of them the last, as many as there are keys, for as many tokens: from
where on depends on which are more, and that branch cannot be traced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mpt.modeling_mpt import MptAttention


def _fitting(biases: Tensor, tokens: int, keys: int) -> Tensor:
    """The last of biases f32[H, 1, L] as f32[H, tokens, keys]; not by a slice, which would ask whether L is enough."""
    places = torch.arange(keys) + (biases.shape[-1] - keys)
    return biases.index_select(-1, places).expand(-1, tokens, -1)


def _forward(module: Any, hidden_states: Tensor, position_bias: Tensor, past_key_values: Any, **others: Any) -> Any:
    """Output of the module's own forward, given no more biases than it takes."""
    tokens = hidden_states.shape[1]
    biases = _fitting(position_bias, tokens, tokens + past_key_values.get_seq_length(module.layer_idx))
    return type(module).forward(module, hidden_states, biases, past_key_values, **others)


@contextmanager
def alibi_by_length(model: nn.Module) -> Iterator[None]:
    """Make a model's biases traceable, within the context; models of other types are left as they are."""
    changed: list[Any] = [module for module in model.modules() if isinstance(module, MptAttention)]
    for module in changed:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward
