"""Greedy generation of a patched model in PyTorch, by a loop of its own: the reference of a session."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clada.contract.pool import PoolPolicy, choose_pools, overdue, update_pools
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import first_step, next_step
from clada.exporter.model.calibrated import Calibrated


@torch.no_grad()
def greedy_tokens(
    model: Any, calibrated: Calibrated, pools: PoolPolicy | None, prompt: Sequence[int], count: int
) -> list[int]:
    """Generate with the patched model in PyTorch alone: prefill dense, decode sparse, greedy.

    Args:
        model: A causal LM after `sparsify`.
        calibrated: The values of its graph.
        pools: Policy of its pools; None where every neuron may be used.
        prompt: Token ids.
        count: Number of tokens to generate.
    """
    decoder, values = Decoder(model, calibrated), calibrated.tensors()
    reanalysis_load = calibrated.load_map.reanalysis_load
    ids = torch.tensor([list(prompt)])
    step = first_step(model, ids, torch.ones_like(ids))
    logits, present, score, load, *_ = decoder(**step, **values)
    chosen = choose_pools(pools, [s.numpy() for s in score], np.array([len(prompt)])) if pools else None
    tokens: list[int] = []
    while True:
        tokens.append(int(logits[0, -1].argmax()))
        if len(tokens) == count:
            return tokens
        step = next_step(step, torch.tensor([tokens[-1:]]), logits, present)
        due = np.zeros(1, np.bool_)
        if chosen is not None:
            due = overdue(chosen, reanalysis_load.item())
            step["pools"] = [torch.from_numpy(mask | due[:, None]) for mask in chosen.masks]
        logits, present, score, load, *_ = decoder(**step, **values)
        if pools and chosen:
            opened = due | (load >= reanalysis_load).numpy()
            update_pools(pools, chosen, [s.numpy() for s in score], opened, np.ones(1, np.bool_))
