"""Inputs of Decoder.forward, step by step, and the calibrated constants that go with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.patch import Sparsity, sparse_layers
from clada.exporter.model.sparse_products import sparse_products
from clada.ops import graph_names


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


def constants(sparsity: Sparsity, load_map: LoadMap) -> dict[str, Any]:
    """Calibrated arguments of Decoder.forward."""
    return {
        "thresholds": list(sparsity.thresholds),
        graph_names.SURPRISAL_KNOTS: load_map.surprisal_knots,
        graph_names.ENTROPY_KNOTS: load_map.entropy_knots,
        graph_names.SCALE_KNOTS: load_map.scale_knots,
        graph_names.REANALYSIS_LOAD: [load_map.reanalysis_load] if sparsity.row_share is None else [],
        "compensation": list(sparsity.compensation),
        "anticipation": [tensor for probe in sparsity.anticipations for tensor in probe.tensors()],
        graph_names.TOKEN_SCALE: [] if load_map.token_scale is None else [load_map.token_scale],
        graph_names.ROW_SHARE: [] if sparsity.row_share is None else [sparsity.row_share],
    }


def constant_names(sparsity: Sparsity, load_map: LoadMap) -> list[str]:
    """Names of the calibrated initializers, in the order of the tensors in `constants`."""
    names = [graph_names.threshold(n) for n in range(len(sparsity.thresholds))]
    names += [graph_names.SURPRISAL_KNOTS, graph_names.ENTROPY_KNOTS, graph_names.SCALE_KNOTS]
    names += [graph_names.REANALYSIS_LOAD] if sparsity.row_share is None else []
    names += [graph_names.compensation(n) for n in range(len(sparsity.compensation))]
    names += [name for probe in sparsity.anticipations for name in graph_names.anticipation(probe.site)]
    names += [] if load_map.token_scale is None else [graph_names.TOKEN_SCALE]
    return names + ([] if sparsity.row_share is None else [graph_names.ROW_SHARE])
