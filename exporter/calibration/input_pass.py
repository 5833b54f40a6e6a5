"""Decode of whole texts in one pass by a dense model whose products get fewer inputs."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.products import Product, input_hooks
from clada.exporter.progress import tracked

P = TypeVar("P", bound=str)


@dataclass(frozen=True)
class Run:
    """Settings of one decode.

    Args:
        thresholds: f32[D] of each product; None where all inputs are read.
        scale: Factor on them, one for all tokens or f32[N, T].
        anticipations: Probes that refine the scale.
        load: f32[N, T], which they read.
    """

    thresholds: Sequence[Tensor | None]
    scale: float | Tensor = 1.0
    anticipations: Sequence[Anticipation] = ()
    load: Tensor | None = None


@torch.no_grad()
def decode_each(
    model: Any, products: Sequence[Product], runs: Sequence[Run], rows: Tensor, prompt_tokens: int
) -> list[Decoded]:
    """Decode texts under several settings; of each row the dense model's predictions are computed once.

    What is kept depends on the token alone, so one pass over all tokens after the prompt computes what decode would.

    Args:
        model: A causal LM, not patched.
        products: Products of the model.
        runs: Settings of each decode.
        rows: i64[N, S] tokens; one row after the other is in memory.
        prompt_tokens: Tokens at the start of each row that are read densely; T are left.

    Returns:
        Results of each run; `read` is of all products' weights, and `active` is by product.
    """
    found: list[list[Decoded]] = [[] for _ in runs]
    for number, ids in enumerate(tracked(rows.unbind(), "decoding")):
        text = _read_prompt(model, ids, prompt_tokens)
        dense = text.log_probabilities(model)[1:]
        for run, decoded in zip(runs, found, strict=True):
            decoded.append(_decoded(model, products, run, number, text, dense))
    return [
        Decoded(*(torch.stack([getattr(row, field.name) for row in decoded]) for field in fields(Decoded)))
        for decoded in found
    ]


@dataclass(frozen=True)
class _Text:
    """Text whose prompt has been read, densely.

    Args:
        cache: Keys and values of the prompt.
        first: T[1, V], the logits after it.
        rest: i64[T], the tokens that follow.
    """

    cache: DynamicCache
    first: Tensor
    rest: Tensor

    def log_probabilities(self, model: Any) -> Tensor:
        """Log-probabilities f32[T + 1, V] of the token after the prompt, and of those after each of the rest."""
        cache = copy.deepcopy(self.cache)
        logits = model(input_ids=self.rest[None], past_key_values=cache, use_cache=True).logits[0]
        return torch.cat([self.first, logits]).float().log_softmax(-1)


def _read_prompt(model: Any, ids: Tensor, prompt_tokens: int) -> _Text:
    cache = DynamicCache(config=model.config)
    prompt = ids[None, :prompt_tokens]
    first = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]
    return _Text(cache, first, ids[prompt_tokens:])


def _decoded(model: Any, products: Sequence[Product], run: Run, number: int, text: _Text, dense: Tensor) -> Decoded:
    """Decode one text, given the dense model's log-probabilities f32[T, V] after each token."""
    kept = torch.ones(len(dense), len(products))
    given = run.scale[number] if isinstance(run.scale, Tensor) else torch.full((len(dense),), run.scale)
    scale = given
    probes = {anticipation.site: anticipation for anticipation in run.anticipations}

    def skip(index: int, x: Tensor) -> Tensor | None:
        nonlocal scale
        threshold, tokens = run.thresholds[index], x.reshape(len(dense), -1)
        if index in probes:
            assert run.load is not None
            scale = probes[index].refined(given, tokens, run.load[number])
        if threshold is None:
            return None
        mask = (tokens != 0) & ~(tokens.abs() < scale.unsqueeze(-1) * threshold)
        kept[:, index] = mask.float().mean(-1)
        return torch.where(mask, tokens, 0).reshape(x.shape)

    with input_hooks(products, skip):
        sparse = text.log_probabilities(model)
    weights = torch.tensor([product.weights for product in products], dtype=torch.float64)
    return Decoded(
        divergence=(dense.exp() * (dense - sparse[1:])).sum(-1),
        agrees=dense.argmax(-1) == sparse[1:].argmax(-1),
        read=(kept.double() @ weights / weights.sum()).float(),
        active=kept,
        surprisal=-sparse[:-1].gather(-1, text.rest[:, None]).squeeze(-1),
        entropy=torch.special.entr(sparse[:-1].exp()).sum(-1),
        foreseen=sparse[:-1].argmax(-1) == text.rest,
    )


def share_by_part(decoded: Decoded, products: Sequence[Product], parts: Sequence[P]) -> Iterator[tuple[P, float]]:
    """Share of the weights that was read, for each part that products belong to."""
    weights = torch.tensor([product.weights for product in products], dtype=torch.float64)
    kept = decoded.active.mean((0, 1), dtype=torch.float64)
    for part in dict.fromkeys(parts):
        mine = torch.tensor([here == part for here in parts])
        yield part, float((kept * weights)[mine].sum() / weights[mine].sum())
