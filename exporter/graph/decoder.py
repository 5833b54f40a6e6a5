"""Decoder module to trace: a patched model with flat inputs, its load signal and its telemetry."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from clada.exporter.graph.ort_attention import BufferCache
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.sparse_products import SparseProduct, sparse_products
from clada.exporter.model.sparse_sites import check_fits
from clada.exporter.model.steering import SiteSettings, Steering, Trace, steered
from clada.ops import LOAD_SIGNAL, graph_names
from clada.ops.torch import torch_op


class Decoder(nn.Module):
    """Graph of the contract: prefill dense, decode sparse, padding skipped; see `forward`.

    With `in_place_cache` it is for one text that is not padded, its keys and values are buffers with room for what is
    yet to come, `attention_mask` may be longer than the text, and it can be traced only, within `in_place_attention`.

    Args:
        model: A patched causal LM.
        calibrated: Values of the graph. Its tensors are arguments of `forward`; read here is only what is none: the
            weight of surprisal, and the sites of anticipations.
        all_logits: Give logits for all positions, not only the last.
        in_place_cache: See above.

    Raises:
        CladaError: The calibrated values do not fit the model.
    """

    def __init__(
        self, model: Any, calibrated: Calibrated, all_logits: bool = False, in_place_cache: bool = False
    ) -> None:
        super().__init__()
        check_fits(model, calibrated)
        self.model, self.calibrated = model, calibrated
        self.all_logits, self.in_place_cache = all_logits, in_place_cache

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_logits: Tensor,
        effort: list[Tensor],
        pools: list[Tensor],
        past: list[tuple[Tensor, Tensor]],
        thresholds: list[Tensor],
        surprisal_knots: Tensor,
        entropy_knots: Tensor,
        scale_knots: Tensor,
        reanalysis_load: list[Tensor],
        compensation: list[Tensor],
        anticipation: list[Tensor],
        token_scale: list[Tensor],
        row_share: list[Tensor],
        weights: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Run one step, prefill or decode.

        Args:
            input_ids: i64[B, S].
            attention_mask: i64[B, P + S], 0 where padded.
            position_ids: i64[B, S].
            past_logits: T[B, V], the logits that predicted the last of input_ids; unused in prefill.
            effort: f32[B], the factor on a text's thresholds; none where neurons are skipped.
            pools: bool[B, F] for each layer; none where inputs are skipped.
            past: Keys and values T[B, H, P, d] for each layer.
            thresholds: See Calibrated.
            surprisal_knots: See LoadMap, as are the following.
            entropy_knots: See LoadMap.
            scale_knots: See LoadMap.
            reanalysis_load: That of LoadMap, or none.
            compensation: See Calibrated.
            anticipation: The tensors of all of Calibrated's, one's after another's.
            token_scale: The table of LoadMap, or none.
            row_share: That of Calibrated, or none.
            weights: Tensors of all products' weights, one's after another's, as their ops take them; none for those
                that the products hold.

        Returns:
            Logits T[B, 1, V] (or [B, S, V]), keys and values for each layer, scores f32[B, F] for each layer that skips
            neurons, and of the last position load, surprisal, entropy f32[B], active i32[L, B] by site, and, where
            inputs are skipped, the share f32[B] of all weights that was read.
        """
        scale, load, surprisal, entropy = torch_op(LOAD_SIGNAL)(
            past_logits,
            input_ids[:, -1],
            surprisal_knots,
            entropy_knots,
            scale_knots,
            self.calibrated.load_map.surprisal_weight,
        )
        for table in token_scale:
            scale = table[input_ids[:, -1]]
        for factor in effort:
            scale = scale * factor
        if self.in_place_cache:
            # From the positions: the mask may be longer than the text, so that its shape need not change.
            is_prefill = (position_ids[:, -1:] > position_ids[:, :1]) | (position_ids[:, :1] == 0)
        else:
            # Lengths as tensors [B, 1]: a Python comparison would fix the graph to the example's sizes.
            here = torch.ones_like(input_ids).sum(1, keepdim=True)
            total = torch.ones_like(attention_mask).sum(1, keepdim=True)
            is_prefill = (here > 1) | (total == here)
        scales = torch.where(is_prefill, 0.0, scale.unsqueeze(1)).expand(input_ids.shape)
        if not self.in_place_cache:
            is_padding = attention_mask[:, -input_ids.shape[1] :] == 0
            scales = torch.where(is_padding, -1.0, scales)
        pool_open = is_prefill
        for least in reanalysis_load:
            pool_open = is_prefill | (load >= least).unsqueeze(1)

        settings = SiteSettings(tuple(thresholds), tuple(compensation), self._anticipations(anticipation))
        steering = Steering(
            settings,
            scale=scales,
            pools=[pool | pool_open for pool in pools] or None,
            load=load.unsqueeze(1).expand(input_ids.shape),
            weights=self._by_product(weights),
        )
        logits, present, trace = self.run(input_ids, attention_mask, position_ids, past, steering)
        active = _active_of_last(list(trace.active.values()), sparse_products(self.model))
        read = [share @ active.float() for share in row_share]
        return logits, present, list(trace.score.values()), load, surprisal, entropy, active, read

    def _anticipations(self, tensors: list[Tensor]) -> tuple[Anticipation, ...]:
        each = len(graph_names.ANTICIPATION)
        return tuple(
            Anticipation(calibrated.site, *tensors[each * n : each * (n + 1)])
            for n, calibrated in enumerate(self.calibrated.anticipations)
        )

    def _by_product(self, weights: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        each = iter(weights)
        counts = [len(product.rows.tensors) for product in sparse_products(self.model)] if weights else []
        return [tuple(itertools.islice(each, count)) for count in counts]

    def run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
        steering: Steering,
    ) -> tuple[Tensor, list[Tensor], Trace]:
        """The model alone, steered so: other arguments, logits, keys and values as of `forward`, and the trace."""
        cache: Any = BufferCache(past, attention_mask, position_ids) if self.in_place_cache else DynamicCache(past)
        with steered(self.model, replace(steering, last_only=not self.all_logits)) as trace:
            logits: Tensor = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0 if self.all_logits else 1,
                **({"buffers": cache} if self.in_place_cache else {}),
            ).logits
        return logits, [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)], trace


def _active_of_last(sites: list[Tensor], products: Sequence[SparseProduct]) -> Tensor:
    """i32[L, B], how much each site kept of the last position, of i32[B, S] each; some products have that one alone."""
    alone = [product.of_last for product in products] or [False] * len(sites)
    groups = []
    # One slice for all neighbors of as many tokens, not one each.
    for _, group in itertools.groupby(zip(alone, sites, strict=True), key=lambda site: site[0]):
        together = [site for _, site in group]
        groups.append(torch.cat(together)[:, -1].unflatten(0, (len(together), -1)))
    return torch.cat(groups) if len(groups) > 1 else groups[0]
