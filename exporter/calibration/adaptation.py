"""Adaptation of the thresholds to a token's difficulty: load map, reanalysis, anticipation, or a table by token id."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clada.contract.manifest import Policy
from clada.exporter.calibration.decode_pass import Decoded, Texts
from clada.exporter.calibration.load_fit import LOAD_KNOTS, fit_load, load_map_of, loads_of, to_float
from clada.exporter.calibration.probe import FEWEST_ROWS, fit_probe, fit_table, knots_of, log_divergence
from clada.exporter.calibration.scale_map import FACTORS, fit_scale_map
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.load_map import LoadMap

# Shares of tokens whose load opens the pool. The least is not 0: a pool that never opens never learns.
_REANALYSIS_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


@dataclass
class Adaptation:
    """Fitted adaptation, and how it decodes the calibration text.

    Args:
        load_map: Constants of the load signal.
        scale: f32[N, T], of each decoded token.
        load: f32[N, T].
        opened: bool[N, T], the tokens that may use all neurons.
        gains: Share of the divergence that each map saves at the same bytes, on rows it was not fitted on.
        anticipation_r2: Share of the variance of a token's log divergence that the probe explains on such rows.
    """

    load_map: LoadMap
    scale: Tensor
    load: Tensor
    opened: Tensor
    gains: dict[str, float] = field(default_factory=dict)
    anticipation_r2: float | None = None

    def decode(self, texts: Texts, pools: list[Tensor] | None) -> Decoded:
        """Decode the texts with this adaptation."""
        return texts.decode(self.scale, pools, self.opened, self.load)


def adapt(texts: Texts, policy: Policy, pools: list[Tensor] | None) -> Adaptation:
    """Fit a policy's adaptation; the thresholds, compensation and pools are final, up to a factor."""
    base = texts.decode(pools=pools)
    loads = loads_of(base)
    weight, factors = 0.5, np.ones(LOAD_KNOTS)
    gains: dict[str, float] = {}
    table: Tensor | None = None
    runs = _runs(texts, base, pools) if policy.scale or policy.reanalysis else []
    scale = torch.ones(base.read.shape)
    if policy.scale == "load":
        weight, fit = fit_load(loads, runs)
        factors, gains["load"] = fit.factors, fit.gain
        scale = to_float(np.interp(loads.by_weight[weight], fit.knots, factors))
    elif policy.scale == "token":
        tokens = texts.rows[:, texts.prompt_tokens :]
        means, predicted = fit_table(tokens, log_divergence(base.divergence), texts.model.config.vocab_size)
        fit = fit_scale_map(predicted.numpy(), knots_of(predicted), runs)
        table, gains["token"] = to_float(np.interp(means.numpy(), fit.knots, fit.factors)), fit.gain
        scale = table[tokens]
    load = loads.by_weight[weight]
    adaptation = Adaptation(
        load_map=load_map_of(loads, weight, factors, table),
        scale=scale,
        load=to_float(load),
        opened=torch.zeros(scale.shape, dtype=torch.bool),
        gains=gains,
    )
    if policy.reanalysis and pools is not None:
        _fit_reanalysis(texts, adaptation, runs, pools)
    if policy.anticipation and len(texts.rows) >= FEWEST_ROWS:
        _fit_anticipation(texts, adaptation, pools)
    return adaptation


def _runs(texts: Texts, base: Decoded, pools: list[Tensor] | None) -> list[Decoded]:
    return [base if factor == 1 else texts.decode(factor, pools) for factor in FACTORS]


def _price_of_bytes(runs: list[Decoded]) -> float:
    """Divergence saved per share of the bytes, at factor 1: nats."""
    tighter, looser = runs[len(FACTORS) // 2 + 1], runs[len(FACTORS) // 2 - 1]
    divergence = float((tighter.divergence - looser.divergence).mean(dtype=torch.float64))
    read = float((looser.read - tighter.read).mean(dtype=torch.float64))
    return max(divergence, 0.0) / max(read, 1e-9)


def _fit_reanalysis(texts: Texts, adaptation: Adaptation, runs: list[Decoded], pools: list[Tensor]) -> None:
    """Set the load that opens the pool: of a few shares of tokens, the one that is most worth its bytes."""
    price = _price_of_bytes(runs)
    best = float("inf")
    chosen = adaptation.opened
    for share in _REANALYSIS_SHARES:
        load = torch.quantile(adaptation.load.flatten().double(), 1 - share).float()
        opened = adaptation.load >= load
        decoded = texts.decode(adaptation.scale, pools, opened)
        worth = float((decoded.divergence + price * decoded.read).mean(dtype=torch.float64))
        if worth < best:
            best, chosen, adaptation.load_map.reanalysis_load = worth, opened, load
    adaptation.opened = chosen


def _fit_anticipation(texts: Texts, adaptation: Adaptation, pools: list[Tensor] | None) -> None:
    """Set the sparsity's one anticipation: of the probes of a few early layers, the one whose map saves most."""
    sparsity, layers = texts.sparsity, len(texts.layers)
    best_gain, best = 0.0, list[Anticipation]()
    for layer in sorted({0, layers // 6, layers // 3}):
        inputs: list[Tensor] = []

        def take(index: int, x: Tensor, layer: int = layer, inputs: list[Tensor] = inputs) -> None:
            if index == layer:
                inputs.append(x.clone())

        sparsity.anticipations = []
        base = texts.decode(adaptation.scale, pools, adaptation.opened, adaptation.load, take)
        features = torch.cat([torch.cat(inputs), adaptation.load.unsqueeze(-1)], dim=-1).double()
        weight, bias, predicted, explained = fit_probe(features, log_divergence(base.divergence))
        runs = []
        for factor in FACTORS:
            sparsity.anticipations = [_constant(layer, features.shape[-1] - 1, factor)]
            runs.append(base if factor == 1 else adaptation.decode(texts, pools))
        fit = fit_scale_map(predicted.numpy(), knots_of(predicted), runs)
        if fit.gain > best_gain:
            best_gain, adaptation.anticipation_r2 = fit.gain, explained
            probe = weight[:-1].float(), weight[-1].float(), bias.float()
            best = [Anticipation(layer, *probe, to_float(fit.knots), to_float(fit.factors))]
    sparsity.anticipations = best
    adaptation.gains["anticipation"] = best_gain


def _constant(layer: int, width: int, factor: float) -> Anticipation:
    """Probe that always gives the same factor."""
    zero = torch.zeros(())
    return Anticipation(layer, torch.zeros(width), zero, zero, torch.tensor([0.0, 1.0]), torch.full((2,), factor))
