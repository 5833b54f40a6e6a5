"""Inputs of Decoder.forward, step by step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from clada.exporter.model.patch import sparse_layers
from clada.exporter.model.sparse_products import sparse_products


@dataclass(frozen=True)
class CacheShape:
    """Sizes of one layer's KV cache: heads, and width of a key and of a value."""

    heads: int
    key_width: int
    value_width: int


def cache_shapes(model: Any) -> list[CacheShape]:
    """Determine each layer's cache sizes by a pass over one token."""
    cache: Any = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return [CacheShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in cache.layers]


def _step(model: Any, ids: Tensor, mask: Tensor, make: Callable[..., Tensor]) -> dict[str, Any]:
    """Inputs of Decoder.forward up to `past`, all pools open; `make` gives the logits and the cache of a shape."""
    batch, past = len(ids), mask.shape[1] - ids.shape[1]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, past:],
        "past_logits": make(batch, model.config.vocab_size),
        "effort": [torch.ones(batch)] if sparse_products(model) else [],
        "pools": [torch.ones(batch, layer.neurons, dtype=torch.bool) for layer in sparse_layers(model)],
        "past": [
            (make(batch, c.heads, past, c.key_width), make(batch, c.heads, past, c.value_width))
            for c in cache_shapes(model)
        ],
    }


def random_step(model: Any, batch: int, sequence: int, past: int, seed: int = 0) -> dict[str, Any]:
    """Random inputs of a step of any sizes; all tensors are distinct."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (batch, sequence), generator=generator)
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    return _step(model, ids, mask, lambda *shape: torch.randn(*shape, generator=generator).to(model.dtype))


def first_step(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Inputs that read prompts: ids and mask i64[B, S]."""
    return _step(model, ids, mask, lambda *shape: torch.zeros(*shape, dtype=model.dtype))


def next_step(step: dict[str, Any], tokens: Tensor, logits: Tensor, present: list[Tensor]) -> dict[str, Any]:
    """Inputs that read one token more, i64[B, 1], given the outputs of the step before."""
    mask = torch.cat([step["attention_mask"], torch.ones_like(tokens)], dim=1)
    return step | {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": mask.sum(1, keepdim=True) - 1,
        "past_logits": logits[:, -1],
        "past": list(zip(present[::2], present[1::2], strict=True)),
    }
