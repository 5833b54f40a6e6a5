"""Fit of the map from a signal to the scale: least divergence at the same bytes, never tighter at a higher signal."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clada.exporter.calibration.decode_pass import Decoded

Floats = npt.NDArray[np.float64]

# Uniform factors on the thresholds that are tried; the one in the middle is 1.
FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)
# Of the factors between the first and the last, the logarithms; the one in the middle is 0.
_FINE = np.linspace(np.log(FACTORS[0]), np.log(FACTORS[-1]), 61)


@dataclass(frozen=True)
class Fit:
    """Fitted map.

    Args:
        knots: f64[M], values of the signal, ascending.
        factors: f64[M], positive and non-increasing.
        gain: Share of the divergence that it saves at the same bytes, as estimated on text it was not fitted on.
    """

    knots: Floats
    factors: Floats
    gain: float


def _monotone(costs: Floats) -> npt.NDArray[np.int64]:
    """Index of each bin's factor, non-increasing from bin to bin, of the least total; costs f64[bins, factors]."""
    total, choices = costs[0], []
    for cost in costs[1:]:
        # The bin before may have any factor that is not smaller.
        reverse = total[::-1]
        best = np.minimum.accumulate(reverse)
        first = np.maximum.accumulate(np.where(reverse == best, np.arange(len(reverse)), 0))
        choices.append(len(reverse) - 1 - first[::-1])
        total = cost + best[::-1]
    path = [int(total.argmin())]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return np.array(path[::-1])


def _curves(
    bins: npt.NDArray[np.int64], count: int, runs: Sequence[Decoded], factors: Sequence[float], rows: slice
) -> tuple[Floats, Floats]:
    """Summed divergence and bytes f64[bins, fine factors] by bin, interpolated between the factors that were run."""

    def summed(name: str) -> Floats:
        values = [getattr(run, name)[rows].double().numpy().ravel() for run in runs]
        return np.stack([np.bincount(bins[rows].ravel(), value, count) for value in values], axis=1)

    at = np.log(factors)
    divergence = np.maximum(summed("divergence"), 1e-12)
    fine = np.array([np.exp(np.interp(_FINE, at, np.log(curve))) for curve in divergence])
    return fine, np.array([np.interp(_FINE, at, curve) for curve in summed("read")])


def _choose(divergence: Floats, read: Floats) -> npt.NDArray[np.int64]:
    """Indices of the factors with the least divergence that read no more than factor 1 throughout."""
    allowed = read[:, len(_FINE) // 2].sum()
    each = np.arange(len(read))
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        chosen = _monotone(divergence + np.exp(middle) * read)
        low, high = (middle, high) if read[each, chosen].sum() > allowed else (low, middle)
    return _monotone(divergence + np.exp(high) * read)


def fit_scale_map(signal: Floats, knots: Floats, runs: Sequence[Decoded], factors: Sequence[float] = FACTORS) -> Fit:
    """Fit a map of a signal.

    Args:
        signal: f64[N, T], of each decoded token.
        knots: f64[M], where the map has its knots, ascending; each token counts for the nearest.
        runs: Results of decoding at each of the factors throughout.
        factors: Those; from the first to the last of FACTORS, 1 among them.

    Returns:
        The map fitted on all rows, or a flat one where maps fitted on half of the rows save nothing on the others.
    """
    bins = np.abs(signal[..., None] - knots).argmin(-1)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    curves = [_curves(bins, len(knots), runs, factors, half) for half in halves]
    flat, each = len(_FINE) // 2, np.arange(len(knots))
    before = after = 0.0
    for fitted, other in ((0, 1), (1, 0)):
        chosen = _choose(*curves[fitted])
        divergence, read = curves[other]
        # Read on the other half may differ: put right by the slope of its own curve at factor 1.
        step = slice(flat - 3, flat + 4, 6)
        change = np.diff(divergence[:, step].sum(0)) / np.minimum(np.diff(read[:, step].sum(0)), -1e-9)
        excess = read[each, chosen].sum() - read[:, flat].sum()
        before += divergence[:, flat].sum()
        after += divergence[each, chosen].sum() - float(change[0]) * excess
    gain = 1 - after / before if before > 0 else 0.0
    if gain <= 0:
        return Fit(knots, np.ones(len(knots)), 0.0)
    both = [sum(parts) for parts in zip(*curves, strict=True)]
    return Fit(knots, np.exp(_FINE[_choose(*both)]), gain)
