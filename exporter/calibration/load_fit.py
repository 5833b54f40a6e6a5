"""Fit of the load signal: the quantiles that define it, and the map from a load to the scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.scale_map import FACTORS, Fit, Floats, fit_scale_map
from clada.exporter.model.load_map import NO_POOL, LoadMap

_KNOTS = 33
LOAD_KNOTS = 9
_SURPRISAL_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Loads:
    """Load of every decoded token, by the share of surprisal in it.

    Args:
        surprisal_knots: f64[K], quantiles of surprisal in nats.
        entropy_knots: f64[K], quantiles of entropy in nats.
        by_weight: For each share of surprisal that is tried, the load f64[N, T].
    """

    surprisal_knots: Floats
    entropy_knots: Floats
    by_weight: dict[float, Floats]


def loads_of(decoded: Decoded) -> Loads:
    """Compute the loads of decoded tokens."""
    knots = _quantiles(decoded.surprisal), _quantiles(decoded.entropy)
    surprisal, entropy = _ranks(decoded.surprisal, knots[0]), _ranks(decoded.entropy, knots[1])
    return Loads(*knots, {w: w * surprisal + (1 - w) * entropy for w in _SURPRISAL_WEIGHTS})


def fit_load(loads: Loads, runs: Sequence[Decoded], factors: Sequence[float] = FACTORS) -> tuple[float, Fit]:
    """Fit the share of surprisal, and the map of the resulting load, that save most; see `fit_scale_map`."""
    at = np.linspace(0, 1, LOAD_KNOTS)
    fits = {w: fit_scale_map(load, at, runs, factors) for w, load in loads.by_weight.items()}
    weight = max(fits, key=lambda w: fits[w].gain)
    return weight, fits[weight]


def load_map_of(loads: Loads, weight: float, factors: Floats, token_scale: Tensor | None = None) -> LoadMap:
    """Constants of the load signal: the share of surprisal, and the factors by load; no load opens a pool."""
    return LoadMap(
        surprisal_knots=to_float(loads.surprisal_knots),
        entropy_knots=to_float(loads.entropy_knots),
        scale_knots=to_float(factors),
        reanalysis_load=torch.tensor(NO_POOL),
        surprisal_weight=weight,
        token_scale=token_scale,
    )


def load_by(load_map: LoadMap, decoded: Decoded) -> Floats:
    """Load f64[N, T] of decoded tokens, from a load signal's constants; the op's own formula."""
    weight = load_map.surprisal_weight
    surprisal = _ranks(decoded.surprisal, load_map.surprisal_knots.double().numpy())
    return weight * surprisal + (1 - weight) * _ranks(decoded.entropy, load_map.entropy_knots.double().numpy())


def scale_by(load_map: LoadMap, load: Floats) -> Tensor:
    """Factor f32[N, T] on the thresholds, as a function of the load."""
    knots = load_map.scale_knots.double().numpy()
    return to_float(np.interp(load, np.linspace(0, 1, len(knots)), knots))


def to_float(values: Floats) -> Tensor:
    """Round to float32, the type in graphs."""
    return torch.from_numpy(np.asarray(values)).float()


def _ranks(values: Tensor, knots: Floats) -> Floats:
    return np.interp(values.double().numpy(), knots, np.linspace(0, 1, len(knots)))


def _quantiles(values: Tensor) -> Floats:
    return np.quantile(values.double().numpy(), np.linspace(0, 1, _KNOTS))
