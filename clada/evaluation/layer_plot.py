"""Plot of the sparsity of each layer."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clada.evaluation.curves import COST
from clada.evaluation.report_data import Measured

# Beyond it numbers in cells do not fit.
_MOST_NUMBERED_LAYERS = 16


def _panel(axes: Axes, shares: Sequence[Sequence[float]], title: str) -> None:
    values = 100 * np.array(shares)
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    if values.shape[1] <= _MOST_NUMBERED_LAYERS:
        for (row, layer), value in np.ndenumerate(values):
            color = "white" if value > 70 else "black"
            axes.text(layer, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(values.shape[1]))
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=12)


def layers_figure(results: Sequence[Measured]) -> Figure:
    """Draw two heat maps, a row per result and a column per layer: realized sparsity, and size of the pool.

    Args:
        results: Results of one model on one text.
    """
    figure = Figure(figsize=(12, 1.4 + 0.26 * len(results)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, [result.sparsity for result in results], "sparsity (% of neurons not computed)")
    _panel(right, [result.pool for result in results], "pool (% of neurons allowed)")
    labels = [f"{result.policy}, {result.metrics[COST].value:.0%} of bytes" for result in results]
    left.set_yticks(range(len(results)), labels, fontsize=9)
    return figure
