"""Decode of whole texts in one pass: causal attention makes it equal to token by token, given the steering values."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.patch import sparse_layers
from clada.exporter.model.steering import SiteSettings, Steering, steered
from clada.ops.sparse_ffn import read_fraction

_LOGITS_IN_FLIGHT = 2**25  # elements; bounds the rows in a batch for a large vocabulary
_LOGITS_KEPT = 2**28  # elements; what is kept of the dense model's predictions, 1 GiB


@dataclass(frozen=True)
class Decoded:
    """Results of decoding T tokens of each of N rows.

    Args:
        divergence: f32[N, T], KL divergence of the next token's distribution from the dense model's, nats.
        agrees: bool[N, T], whether its likeliest token is the dense model's.
        read: f32[N, T], share of the feed-forward weights' bytes that were read.
        active: f32[N, T, L], share of each layer's neurons that were computed.
        surprisal: f32[N, T], of the token that was read, nats.
        entropy: f32[N, T], of the distribution that predicted it, nats.
        foreseen: bool[N, T], whether it is the likeliest of that distribution.
    """

    divergence: Tensor
    agrees: Tensor
    read: Tensor
    active: Tensor
    surprisal: Tensor
    entropy: Tensor
    foreseen: Tensor


class Texts:
    """Rows of calibration text, and the dense model's outputs for them.

    Args:
        model: A causal LM after `sparsify`, in float32.
        rows: i64[N, S] tokens.
        prompt_tokens: P; the tokens after them are decoded.
    """

    def __init__(self, model: Any, rows: Tensor, prompt_tokens: int) -> None:
        self.model, self.rows, self.prompt_tokens = model, rows, prompt_tokens
        self.layers = sparse_layers(model)
        size = max(1, min(16, _LOGITS_IN_FLIGHT // (model.config.vocab_size * rows.shape[1])))
        self.batches = list(rows.split(size))
        self._head = model.get_output_embeddings()
        self._before_head: list[Tensor] = []
        self._kept_log_probabilities: dict[int, Tensor] = {}
        scores = []
        with torch.no_grad():
            for ids in self.batches:
                with steered(model), shown_inputs([self._head], lambda _, x: self._before_head.append(x)):
                    model(input_ids=ids, use_cache=False)
            for ids in self.batches:
                # A scale for each token: some families flatten rows, and a score is of a row.
                with steered(model, Steering(scale=torch.zeros(len(ids), prompt_tokens))) as trace:
                    model(input_ids=ids[:, :prompt_tokens], use_cache=False, logits_to_keep=1)
                scores.append(list(trace.score.values()))
        self.prompt_scores = [torch.cat(parts) for parts in zip(*scores, strict=True)]

    @property
    def decoded_tokens(self) -> int:
        """Number of tokens that a pass decodes."""
        return int(self.rows.shape[0] * (self.rows.shape[1] - self.prompt_tokens))

    def first(self, tokens: int) -> "Texts":
        """First rows, with about this many tokens; at least one row."""
        rows = self.rows[: max(1, tokens // self.rows.shape[1])]
        return self if len(rows) == len(self.rows) else Texts(self.model, rows, self.prompt_tokens)

    @torch.no_grad()
    def _log_probabilities(self, batch: int) -> Tensor:
        """Log-probabilities f32[B, T, V] of the dense model at decoded tokens; kept where memory allows."""
        found = self._kept_log_probabilities.get(batch)
        if found is None:
            logits = self._head(self._before_head[batch][:, self.prompt_tokens :])
            found = torch.log_softmax(logits.float(), dim=-1)
            if self.decoded_tokens * self.model.config.vocab_size <= _LOGITS_KEPT:
                self._kept_log_probabilities[batch] = found
        return found

    @torch.no_grad()
    def dense_inputs(self, take: Callable[[int, Tensor], None]) -> None:
        """Call a function with each layer's inputs T[B, T, D] at decoded tokens in dense passes, batch by batch."""
        for ids in self.batches:

            def show(index: int, x: Tensor, shape: tuple[int, ...] = tuple(ids.shape)) -> None:
                take(index, x.reshape(*shape, -1)[:, self.prompt_tokens :])

            with steered(self.model), shown_inputs(self.layers, show):
                self.model(input_ids=ids, use_cache=False, logits_to_keep=1)

    @torch.no_grad()
    def decode(
        self,
        settings: SiteSettings,
        scale: Tensor | float = 1.0,
        pools: list[Tensor] | None = None,
        opened: Tensor | None = None,
        load: Tensor | None = None,
        take: Callable[[int, Tensor], None] | None = None,
    ) -> Decoded:
        """Decode every row.

        Args:
            settings: The rule that layers follow.
            scale: f32[N, T] or one for all.
            pools: bool[N, F] for each layer; None for all neurons.
            opened: bool[N, T], the tokens that may use all neurons; None for none.
            load: f32[N, T], which anticipation reads; None where there is none.
            take: Shown each layer's index and inputs T[B, T, D] at decoded tokens, batch by batch.
        """
        n, s = self.rows.shape
        start, t = self.prompt_tokens, s - self.prompt_tokens
        token_scale = torch.as_tensor(scale, dtype=torch.float32).expand(n, t)
        parts: list[Decoded] = []
        at = 0
        for index, ids in enumerate(self.batches):
            b = len(ids)
            rows = slice(at, at + b)
            at += b
            # Every token by itself, [B * S, 1, D]: a pool is then a token's own.
            full = torch.zeros(b, s)
            full[:, start:] = token_scale[rows]
            steering = Steering(settings, scale=full.reshape(-1, 1))
            if load is not None:
                full_load = torch.zeros(b, s)
                full_load[:, start:] = load[rows]
                steering = replace(steering, load=full_load.reshape(-1, 1))
            allowed = [torch.full((b, t), layer.neurons) for layer in self.layers]
            if pools is not None:
                free = torch.ones(b, s, 1, dtype=torch.bool)
                free[:, start:, 0] = False if opened is None else opened[rows]
                masks = [pool[rows].unsqueeze(1) | free for pool in pools]
                allowed = [mask[:, start:].sum(-1) for mask in masks]
                steering = replace(steering, pools=[mask.flatten(0, 1) for mask in masks])

            def show(layer: int, x: Tensor, shape: tuple[int, ...] = (b, s, -1)) -> None:
                if take is not None:
                    take(layer, x.reshape(shape)[:, start:])

            with steered(self.model, steering) as trace, shown_inputs(self.layers, show):
                logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=t + 1).logits
            active = [kept.reshape(b, s)[:, start:] for kept in trace.active.values()]
            parts.append(self._compared(index, ids, logits, allowed, active))
        return Decoded(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Decoded)))

    def _compared(
        self, index: int, ids: Tensor, logits: Tensor, allowed: list[Tensor], active: list[Tensor]
    ) -> Decoded:
        start = self.prompt_tokens
        sparse = torch.log_softmax(logits.float(), dim=-1)  # [B, T + 1, V], from the last token of the prompt on
        dense = self._log_probabilities(index)
        read, shares, neurons = torch.zeros(active[0].shape), [], sum(layer.neurons for layer in self.layers)
        for layer, pool, kept in zip(self.layers, allowed, active, strict=True):
            part = read_fraction(layer.op, pool.numpy(), kept.numpy(), layer.neurons)
            read += torch.from_numpy(part).float() * (layer.neurons / neurons)
            shares.append(kept / layer.neurons)
        return Decoded(
            divergence=(dense.exp() * (dense - sparse[:, 1:])).sum(-1),
            agrees=dense.argmax(-1) == sparse[:, 1:].argmax(-1),
            read=read,
            active=torch.stack(shares, -1),
            surprisal=-sparse[:, :-1].gather(-1, ids[:, start:, None]).squeeze(-1),
            entropy=torch.special.entr(sparse[:, :-1].exp()).sum(-1),
            foreseen=sparse[:, :-1].argmax(-1) == ids[:, start:],
        )
