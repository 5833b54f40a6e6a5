"""Adaptation of the thresholds to a token's difficulty: load map, reanalysis, anticipation, or a table by token id."""

from dataclasses import dataclass, field, replace

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
from clada.exporter.model.steering import SiteSettings

# Shares of tokens whose load opens the pool. The least is not 0: a pool that never opens never learns.
_REANALYSIS_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Adaptation:
    """Fitted adaptation, and how it decodes the calibration text.

    Args:
        load_map: Constants of the load signal.
        scale: f32[N, T], of each decoded token.
        load: f32[N, T].
        opened: bool[N, T], the tokens that may use all neurons.
        anticipations: The probe that refines the scale, or none.
        gains: Share of the divergence that each map saves at the same bytes, on rows it was not fitted on.
        anticipation_r2: Share of the variance of a token's log divergence that the probe explains on such rows.
    """

    load_map: LoadMap
    scale: Tensor
    load: Tensor
    opened: Tensor
    anticipations: tuple[Anticipation, ...] = ()
    gains: dict[str, float] = field(default_factory=dict)
    anticipation_r2: float | None = None

    def decode(self, texts: Texts, settings: SiteSettings, pools: list[Tensor] | None) -> Decoded:
        """Decode the texts with other settings adapted so."""
        adapted = replace(settings, anticipations=self.anticipations)
        return texts.decode(adapted, self.scale, pools, self.opened, self.load)


def adapt(texts: Texts, settings: SiteSettings, policy: Policy, pools: list[Tensor] | None) -> Adaptation:
    """Fit what a policy adapts by; the settings and pools are as they will be, up to a factor on the thresholds."""
    base = texts.decode(settings, pools=pools)
    loads = loads_of(base)
    weight, factors = 0.5, np.ones(LOAD_KNOTS)
    gains: dict[str, float] = {}
    table: Tensor | None = None
    runs = _runs(texts, settings, base, pools) if policy.scale or policy.reanalysis else []
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
        adaptation = _with_reanalysis(texts, settings, adaptation, runs, pools)
    if policy.anticipation and len(texts.rows) >= FEWEST_ROWS:
        adaptation = _with_anticipation(texts, settings, adaptation, pools)
    return adaptation


def _runs(texts: Texts, settings: SiteSettings, base: Decoded, pools: list[Tensor] | None) -> list[Decoded]:
    return [base if factor == 1 else texts.decode(settings, factor, pools) for factor in FACTORS]


def _price_of_bytes(runs: list[Decoded]) -> float:
    """Divergence saved per share of the bytes, at factor 1: nats."""
    tighter, looser = runs[len(FACTORS) // 2 + 1], runs[len(FACTORS) // 2 - 1]
    divergence = float((tighter.divergence - looser.divergence).mean(dtype=torch.float64))
    read = float((looser.read - tighter.read).mean(dtype=torch.float64))
    return max(divergence, 0.0) / max(read, 1e-9)


def _with_reanalysis(
    texts: Texts, settings: SiteSettings, adaptation: Adaptation, runs: list[Decoded], pools: list[Tensor]
) -> Adaptation:
    """With a load that opens the pool: of a few shares of tokens, the one that is worth its bytes most."""
    price = _price_of_bytes(runs)
    best = float("inf")
    chosen = adaptation
    for share in _REANALYSIS_SHARES:
        load = torch.quantile(adaptation.load.flatten().double(), 1 - share).float()
        opened = adaptation.load >= load
        decoded = texts.decode(settings, adaptation.scale, pools, opened)
        worth = float((decoded.divergence + price * decoded.read).mean(dtype=torch.float64))
        if worth < best:
            best = worth
            chosen = replace(adaptation, opened=opened, load_map=replace(adaptation.load_map, reanalysis_load=load))
    return chosen


def _with_anticipation(
    texts: Texts, settings: SiteSettings, adaptation: Adaptation, pools: list[Tensor] | None
) -> Adaptation:
    """With an anticipation, if any helps: of the probes of a few early layers, the one whose map saves most."""
    layers = len(texts.layers)
    best = replace(adaptation, gains=adaptation.gains | {"anticipation": 0.0})
    for layer in sorted({0, layers // 6, layers // 3}):
        inputs: list[Tensor] = []

        def take(index: int, x: Tensor, layer: int = layer, inputs: list[Tensor] = inputs) -> None:
            if index == layer:
                inputs.append(x.clone())

        base = texts.decode(settings, adaptation.scale, pools, adaptation.opened, adaptation.load, take)
        features = torch.cat([torch.cat(inputs), adaptation.load.unsqueeze(-1)], dim=-1).double()
        weight, bias, predicted, explained = fit_probe(features, log_divergence(base.divergence))
        runs = []
        for factor in FACTORS:
            tried = replace(adaptation, anticipations=(_constant(layer, features.shape[-1] - 1, factor),))
            runs.append(base if factor == 1 else tried.decode(texts, settings, pools))
        fit = fit_scale_map(predicted.numpy(), knots_of(predicted), runs)
        if fit.gain > best.gains["anticipation"]:
            probe = weight[:-1].float(), weight[-1].float(), bias.float()
            best = replace(
                adaptation,
                anticipations=(Anticipation(layer, *probe, to_float(fit.knots), to_float(fit.factors)),),
                gains=adaptation.gains | {"anticipation": fit.gain},
                anticipation_r2=explained,
            )
    return best


def _constant(layer: int, width: int, factor: float) -> Anticipation:
    """Probe that always gives the same factor."""
    zero = torch.zeros(())
    return Anticipation(layer, torch.zeros(width), zero, zero, torch.tensor([0.0, 1.0]), torch.full((2,), factor))
