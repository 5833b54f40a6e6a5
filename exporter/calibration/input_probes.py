"""Anticipation where inputs are skipped: probes predict the entropy of the prediction that is being computed.

What a token loses follows that entropy more closely than anything that is known before the token is read, and the
residual stream tells of it early. A probe is a linear map of a product's input; it is fitted on text that is only read
densely, of which there may be much, and then set beside the load against the divergence of text that was decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.load_fit import to_float
from clada.exporter.calibration.probe import halves, knots_of, log_divergence, ridge
from clada.exporter.calibration.scale_map import Floats, fit_scale_map
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.products import Product, input_hooks, layer_starts
from clada.exporter.progress import tracked

# Where the probes are, as shares of the model's layers: later ones know more, and have less left to steer.
_DEPTHS = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)
# Ridge penalties tried, as a share of the tokens.
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
# Share of the divergence that a probe has to save beyond those before it.
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Foresight:
    """Fitted anticipations, and their gain.

    Args:
        anticipations: From the first product that has one to the last.
        explained: Of each, the share of the variance of a token's log divergence that it explains, on rows that it was
            not fitted on.
        gain: Share of the divergence that they save beside the load's map, as estimated on such rows.
    """

    anticipations: list[Anticipation]
    explained: list[float]
    gain: float


def probed_products(products: Sequence[Product]) -> list[int]:
    """Indices of the products whose inputs are probed: the first of a few layers, and the output matrix."""
    starts = layer_starts(products)
    return sorted({starts[round(depth * (len(starts) - 1))] for depth in _DEPTHS} | {starts[-1]})


@torch.no_grad()
def read_densely(
    model: Any, products: Sequence[Product], sites: Sequence[int], rows: Tensor, prompt_tokens: int
) -> tuple[dict[int, Tensor], Tensor]:
    """Read rows densely, without their prompts.

    Args:
        model: A causal LM, not patched.
        products: Products of the model.
        sites: Indices of products whose inputs are wanted.
        rows: i64[R, S] tokens; one row after the other is read.
        prompt_tokens: Tokens at the start of each row that are left out; T remain.

    Returns:
        The inputs f32[R, T, D] by site, and the entropy f64[R, T] in nats of what is predicted after each token.
    """
    inputs: dict[int, list[Tensor]] = {site: [] for site in sites}
    entropies = []

    def note(index: int, x: Tensor) -> None:
        if index in inputs:
            inputs[index].append(x.reshape(rows.shape[1], -1)[prompt_tokens:].clone())

    with input_hooks(products, note):
        for row in tracked(rows.unbind(), "what is to come"):
            logits = model(input_ids=row[None], use_cache=False).logits[0, prompt_tokens:]
            entropies.append(torch.special.entr(logits.float().softmax(-1)).sum(-1, dtype=torch.float64))
    return {site: torch.stack(of_site) for site, of_site in inputs.items()}, torch.stack(entropies)


def fit_foresight(
    inputs: dict[int, Tensor],
    entropy: Tensor,
    load: Floats,
    scale: Tensor,
    runs: Sequence[Decoded],
    factors: Sequence[float],
) -> Foresight:
    """Fit a probe at each site, and keep those that save more than the ones before them.

    Args:
        inputs: f32[R, T, D] by site, of which the first N rows are those that were decoded; see `read_densely`.
        entropy: f64[R, T], what is foreseen.
        load: f64[N, T], of the rows that were decoded.
        scale: f32[N, T], what the load's map makes of it; a probe's factor is on top of that.
        runs: Results of decoding those rows at each of the factors throughout.
        factors: Those; ascending, 1 in the middle.
    """
    cost = log_divergence(runs[len(runs) // 2].divergence)
    scaled = _rescaled(runs, factors, scale.double().numpy())
    foresight = Foresight([], [], 0.0)
    for site, features in inputs.items():
        probe, predicted, explained = _fit_probe(site, features.double(), entropy, torch.from_numpy(load), cost)
        fit = fit_scale_map(predicted.numpy(), knots_of(predicted), scaled, factors)
        if fit.gain > foresight.gain + _LEAST_GAIN:
            found = replace(probe, knots=to_float(fit.knots), factors=to_float(fit.factors))
            foresight = Foresight([*foresight.anticipations, found], [*foresight.explained, explained], fit.gain)
    return foresight


def _fit_probe(
    site: int, features: Tensor, entropy: Tensor, load: Tensor, cost: Tensor
) -> tuple[Anticipation, Tensor, float]:
    """Fit a probe without its map; returns it, its predictions f64[N, T] on held-out rows, and the explained variance.

    Args:
        site: The product.
        features: f64[R, T, D].
        entropy: f64[R, T].
        load: f64[N, T].
        cost: f64[N, T], what is predicted of it and of the load.
    """
    decoded = len(cost)
    best: tuple[float, float, Tensor] | None = None
    for penalty in _PENALTIES:
        foreseen = torch.empty_like(cost)
        for half in halves(decoded):
            others = torch.ones(len(features), dtype=torch.bool)
            others[half] = False
            weight, bias = ridge(features[others].flatten(0, 1), entropy[others].flatten(), penalty)
            foreseen[half] = features[half] @ weight + bias
        error = float((foreseen - entropy[:decoded]).square().mean())
        if best is None or error < best[0]:
            best = (error, penalty, foreseen)
    assert best is not None
    known = torch.stack([best[2], load, torch.ones_like(cost)], dim=-1)  # [N, T, 3]
    share = torch.linalg.lstsq(known.flatten(0, 1), cost.flatten()[:, None], driver="gelsd").solution[:, 0]
    predicted = known @ share
    variance = float(cost.var())
    explained = 1 - float((predicted - cost).square().mean()) / variance if variance > 0 else 0.0
    weight, bias = ridge(features.flatten(0, 1), entropy.flatten(), best[1])
    probe = Anticipation(
        site,
        weight=(share[0] * weight).float(),
        load_weight=share[1].float(),
        bias=(share[0] * bias + share[2]).float(),
        knots=torch.empty(0),
        factors=torch.empty(0),
    )
    return probe, predicted, explained


def _rescaled(runs: Sequence[Decoded], factors: Sequence[float], scale: Floats) -> list[Decoded]:
    """Results of the runs with each token's thresholds scaled by a factor f64[N, T], interpolated between the runs.

    The logarithm of a token's divergence and what it reads go in straight lines along the logarithm of the factor.
    """
    at = np.log(factors)
    divergence = np.stack([log_divergence(run.divergence).numpy() for run in runs])  # [factors, N, T]
    read = np.stack([run.read.double().numpy() for run in runs])

    def between(values: Floats, where: Floats) -> Tensor:
        upper = np.clip(np.searchsorted(at, where), 1, len(at) - 1)
        share = np.clip((where - at[upper - 1]) / (at[upper] - at[upper - 1]), 0, 1)
        low, high = (np.take_along_axis(values, index[None], axis=0)[0] for index in (upper - 1, upper))
        return torch.from_numpy(low + share * (high - low))

    moved = [np.log(scale) + np.log(factor) for factor in factors]
    return [
        replace(run, divergence=between(divergence, where).exp(), read=between(read, where))
        for run, where in zip(runs, moved, strict=True)
    ]
