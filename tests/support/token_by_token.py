"""Decoding as a session does it, token by token: the reference for the passes of calibration."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from clada.contract.pool import choose_pools, overdue, update_pools
from clada.exporter.calibration.calibrate import Calibration
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import first_step, next_step
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.patch import sparse_layers
from clada.exporter.model.steering import steered
from clada.exporter.verify import scale_of_load


@dataclass(frozen=True)
class Read:
    """Results of reading T tokens of each of N rows, and the values that steered it.

    Args:
        divergence: f32[N, T], KL divergence of the next token's distribution from the dense model's, nats.
        agrees: bool[N, T], whether its likeliest token is the dense model's.
        read: f32[N, T], share of the feed-forward weights' bytes.
        active: f32[N, T, L], share of each layer's neurons that were computed.
        surprisal: f32[N, T].
        entropy: f32[N, T].
        foreseen: bool[N, T], whether the token was the likeliest.
        load: f32[N, T].
        scale: f32[N, T], before anticipation.
        opened: bool[N, T].
    """

    divergence: Tensor
    agrees: Tensor
    read: Tensor
    active: Tensor
    surprisal: Tensor
    entropy: Tensor
    foreseen: Tensor
    load: Tensor
    scale: Tensor
    opened: Tensor


@torch.no_grad()
def read_rows(
    model: PreTrainedModel,
    calibrated: Calibrated,
    rows: Tensor,
    prompt_tokens: int,
    *,
    pools: list[Tensor] | None = None,
    policy: Calibration | None = None,
) -> Read:
    """Read rows teacher-forced: the prompts dense, all further tokens by a step of decode each.

    Args:
        model: A causal LM after `sparsify`.
        calibrated: The values that it is steered by.
        rows: i64[N, S].
        prompt_tokens: Number of tokens of a row that are its prompt.
        pools: bool[N, F] for each layer, kept throughout; all neurons where neither they nor a policy are given.
        policy: Policy by which pools are chosen after the prompt, and as the text goes on.
    """
    layers = sparse_layers(model)
    neurons = torch.tensor([layer.neurons for layer in layers])
    matrices = len(layers[0].matrices)
    with steered(model):
        dense = torch.log_softmax(model(rows).logits.double(), -1)
    decoder, values, load_map = Decoder(model, calibrated), calibrated.tensors(), calibrated.load_map
    step = first_step(model, rows[:, :prompt_tokens], torch.ones(len(rows), prompt_tokens, dtype=torch.int64))
    logits, present, score, *_ = decoder(**step, **values)
    chosen = None
    if policy is not None and policy.pools is not None:
        chosen = choose_pools(policy.pools, [s.numpy() for s in score], np.full(len(rows), prompt_tokens))
    parts: list[tuple[Tensor, ...]] = []
    for at in range(prompt_tokens, rows.shape[1]):
        foreseen = logits[:, -1].argmax(-1) == rows[:, at]
        step = next_step(step, rows[:, at : at + 1], logits, present)
        due = np.zeros(len(rows), np.bool_)
        if chosen is not None:
            due = overdue(chosen, load_map.reanalysis_load.item())
            pools = [torch.from_numpy(mask | due[:, None]) for mask in chosen.masks]
        step["pools"] = pools or step["pools"]
        logits, present, score, load, surprisal, entropy, active, _ = decoder(**step, **values)
        scale = scale_of_load(load.numpy(), load_map.scale_knots)
        if load_map.token_scale is not None:
            scale = load_map.token_scale[rows[:, at]]
        opened = (load >= load_map.reanalysis_load) | torch.from_numpy(due)
        allowed = torch.stack([pool.sum(-1) for pool in step["pools"]], -1)
        allowed = torch.where(opened[:, None], neurons, allowed)
        if chosen is not None:
            update_pools(policy.pools, chosen, [s.numpy() for s in score], opened.numpy(), np.ones(len(rows), bool))
        sparse = torch.log_softmax(logits[:, -1].double(), -1)
        expected = dense[:, at]
        parts.append(
            (
                (expected.exp() * (expected - sparse)).sum(-1).float(),
                expected.argmax(-1) == sparse.argmax(-1),
                (allowed + (matrices - 1) * active.t()).sum(-1) / (matrices * neurons.sum()),
                active.t() / neurons,
                surprisal,
                entropy,
                foreseen,
                load,
                scale,
                opened,
            )
        )
    return Read(*(torch.stack(values, 1) for values in zip(*parts, strict=True)))
