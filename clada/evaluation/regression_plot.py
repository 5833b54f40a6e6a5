"""Plot of the regression."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clada.evaluation.images import COLORS
from clada.evaluation.regression import Floats, Regression, active_share, log_kl, predicted
from clada.evaluation.token_table import TokenTable

_BINS = 16


def _binned(x: Floats, bins: int) -> list[npt.NDArray[np.intp]]:
    """Row numbers of bins with equally many tokens; equal values stay together."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
    places = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [rows for rows in (np.flatnonzero(places == place) for place in range(len(edges))) if len(rows) > 1]


def _panel(axes: Axes, x: Floats, y: Floats, fitted: Floats, color: str) -> None:
    bins = _binned(x, _BINS)
    centers = np.array([x[rows].mean() for rows in bins])
    means = np.array([y[rows].mean() for rows in bins])
    errors = np.array([1.96 * y[rows].std(ddof=1) / np.sqrt(len(rows)) for rows in bins])
    axes.errorbar(
        centers, means, errors, fmt="o", markersize=5, color=color, elinewidth=1.2, capsize=2, label="mean of a bin"
    )
    axes.plot(centers, [fitted[rows].mean() for rows in bins], color="black", linewidth=1.6, label="regression")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def regression_figure(table: TokenTable, regression: Regression, counts: Mapping[int, int] | None = None) -> Figure:
    """Plot means of active share and of KL in bins of surprisal and of entropy, with the regression's predictions.

    A bin's point on the line is the mean of its tokens' predictions, all their predictors included; 95% intervals
    are of the bin's mean.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    responses = [
        ("neurons computed, mean of layers (%)", 100 * active_share(table).mean(axis=1), 100, regression.active),
        ("KL from the dense model (ln of nats)", log_kl(table), 1, regression.kl),
    ]
    predictors = [
        ("surprisal of the token (nats)", table.surprisal),
        ("entropy before the token (nats)", table.entropy),
    ]
    for (ylabel, y, unit, fit), row, color in zip(responses, panels, COLORS, strict=False):
        fitted = unit * predicted(fit, regression, table, counts)
        for (xlabel, x), axes in zip(predictors, row, strict=True):
            _panel(axes, x.astype(np.float64), y, fitted, color)
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
            axes.label_outer()
    panels[0, 0].legend(frameon=False)
    return figure
