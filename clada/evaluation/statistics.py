"""Means and ratios over sequences, and their confidence intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clada.evaluation.subject import Floats

CONFIDENCE = 0.95
RESAMPLES = 10_000

# From columns [..., S], one value a sequence each, to a figure [...] of each row of sequences.
Statistic = Callable[..., Floats]


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval in which it lies with 95% confidence."""

    value: float
    low: float
    high: float


def mean(column: Floats) -> Floats:
    """Mean over sequences; NaN values, of sequences with nothing to count, are left out."""
    return np.nansum(column, axis=-1) / np.isfinite(column).sum(axis=-1)


def exp_mean(column: Floats) -> Floats:
    """Perplexity, from mean negative log-likelihoods over equally many tokens each."""
    return np.exp(mean(column))


def exp_difference(column: Floats, other: Floats) -> Floats:
    """Ratio of two perplexities."""
    return np.exp(mean(column) - mean(other))


def difference(column: Floats, other: Floats) -> Floats:
    """Difference of two means."""
    return mean(column) - mean(other)


def ratio(column: Floats, other: Floats) -> Floats:
    """Ratio of two means."""
    return mean(column) / mean(other)


def relative_difference(column: Floats, other: Floats) -> Floats:
    """Difference of two means as a share of the second."""
    return ratio(column, other) - 1


def mean_with_interval(column: Floats, form: str) -> str:
    """Format a mean over sequences and its interval for a table; the form is that of Python's format strings."""
    found = bootstrap(mean, [column])
    return "undefined" if found is None else f"{found.value:{form}} ({found.low:{form}} - {found.high:{form}})"


def bootstrap(statistic: Statistic, columns: Sequence[Floats], seed: int = 0) -> Estimate | None:
    """Bootstrap a figure over sequences, with a percentile interval.

    The columns are resampled together, so that of two policies on the same sequences the difference is what varies,
    not how hard the sequences are.

    Args:
        statistic: The figure.
        columns: f64[S] each, one value a sequence.
        seed: Seed of the resamples; the same for figures that are to be compared.

    Returns:
        The estimate; None where the figure is not defined, as a ratio to nothing. Resamples for which it is not
        defined are left out.
    """
    sequences = len(columns[0])
    drawn = np.random.default_rng(seed).integers(0, sequences, (RESAMPLES, sequences))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*columns))
        resampled = statistic(*(column[drawn] for column in columns))
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not defined.size:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
