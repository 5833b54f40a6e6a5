"""Fits of a token's cost: a linear probe of a layer's input, or a table by token id."""

import numpy as np
import torch
from torch import Tensor

from clada.exporter.calibration.scale_map import Floats

# Ridge penalties tried, as a share of the tokens.
_PENALTIES = (0.03, 0.1, 0.3, 1.0)
_SMALLEST_DIVERGENCE = 1e-7
# Tokens of the mean that a token id's own mean is shrunk towards.
_TABLE_PRIOR = 4.0
KNOTS = 9
# Rows from which on a fit can be checked on rows it was not made on.
FEWEST_ROWS = 4


def log_divergence(divergence: Tensor) -> Tensor:
    """Target of the fits: the log of a KL divergence in nats, in float64."""
    return divergence.double().clamp_min(_SMALLEST_DIVERGENCE).log()


def ridge(features: Tensor, target: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit weights f64[K] and bias to raw features f64[T, K], in closed form; penalized as if they were standardised."""
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-9)
    standard = (features - mean) / deviation
    gram = standard.t() @ standard + penalty * len(target) * torch.eye(features.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, standard.t() @ (target - target.mean())) / deviation
    return weight, target.mean() - mean @ weight


def halves(rows: int) -> tuple[Tensor, Tensor]:
    """Indices of every other row, and of those between."""
    index = torch.arange(rows)
    return index[::2], index[1::2]


def fit_probe(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Fit a probe.

    Args:
        features: f64[N, T, K].
        target: f64[N, T].

    Returns:
        Weights f64[K] and bias fitted on all rows; predictions f64[N, T], each by a probe that was fitted on the
        other half of the rows; and the share of the target's variance that those explain.
    """
    if len(features) < 2:
        raise ValueError("a probe is checked on other rows than it is fitted on: two are needed")
    both = halves(len(features))
    best: tuple[float, float, Tensor] | None = None
    for penalty in _PENALTIES:
        predicted = torch.empty_like(target)
        for fitted, other in (both, both[::-1]):
            weight, bias = ridge(features[fitted].flatten(0, 1), target[fitted].flatten(), penalty)
            predicted[other] = features[other] @ weight + bias
        error = float((predicted - target).square().mean())
        if best is None or error < best[0]:
            best = (error, penalty, predicted)
    assert best is not None
    weight, bias = ridge(features.flatten(0, 1), target.flatten(), best[1])
    variance = float(target.var())
    # A ReLU network may lose nothing at any token: there is then nothing to explain.
    return weight, bias, best[2], 1 - best[0] / variance if variance > 0 else 0.0


def fit_table(tokens: Tensor, target: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Fit a table by token id: means of the target, shrunk towards its overall mean.

    Args:
        tokens: i64[N, T].
        target: f64[N, T].
        vocabulary: V.

    Returns:
        The table f64[V] over all rows, and predictions f64[N, T], each by a table of the other half of the rows.
    """

    def table(rows: Tensor) -> Tensor:
        ids, values = tokens[rows].flatten(), target[rows].flatten()
        sums = torch.zeros(vocabulary, dtype=torch.float64).index_add_(0, ids, values - target.mean())
        counts = torch.zeros(vocabulary, dtype=torch.float64).index_add_(0, ids, torch.ones_like(values))
        return sums / (counts + _TABLE_PRIOR) + target.mean()

    both = halves(len(tokens))
    predicted = torch.empty_like(target)
    for fitted, other in (both, both[::-1]):
        predicted[other] = table(fitted)[tokens[other]]
    return table(torch.arange(len(tokens))), predicted


def knots_of(signal: Tensor) -> Floats:
    """Knots f64[KNOTS]: quantiles of a signal, ascending; equal ones are moved apart."""
    knots = np.quantile(signal.numpy(), (np.arange(KNOTS) + 0.5) / KNOTS)
    return np.maximum.accumulate(knots + np.arange(KNOTS) * 1e-6)
