"""Plots of quality against cost."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from clada.evaluation.images import COLORS, GRAY, MARKERS
from clada.evaluation.report_data import Measured

DENSE = "dense"
# In the order of their colors; every report draws them alike.
_POLICIES = ("clada", "cats", "griffin", "sats", "teal", "wina", "tt")


class Axis(NamedTuple):
    """Vertical axis of a metric.

    Args:
        metric: Its name in a result.
        label: Label of the axis, with its unit.
        dense: Value of the dense model.
        logarithmic: Whether it is drawn on a logarithmic scale, on which 0 has no place.
        share: Whether it is shown in percent.
    """

    metric: str
    label: str
    dense: float
    logarithmic: bool
    share: bool


QUALITY = (
    Axis("kl", "KL from the dense model (nats a token)", 0.0, logarithmic=True, share=False),
    Axis("perplexity_ratio", "perplexity, times the dense model's", 1.0, logarithmic=False, share=False),
    Axis("disagreement", "other token likeliest (% of tokens)", 0.0, logarithmic=False, share=True),
)
COST = "read_fraction"


def _rank(policy: str) -> tuple[int, str]:
    """Sort key of a policy: known ones first, in a fixed order, then others, and the dense model last."""
    return (_POLICIES.index(policy) if policy in _POLICIES else len(_POLICIES) + (policy == DENSE), policy)


def _styles(policies: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line styles by policy, in order; known ones solid and filled, the others dashed and hollow."""
    styles: dict[str, dict[str, Any]] = {}
    others = 0
    for policy in sorted(policies, key=_rank):
        known = policy in _POLICIES
        place = _POLICIES.index(policy) if known else others
        others += not known and policy != DENSE
        color = GRAY if policy == DENSE else COLORS[place % len(COLORS)]
        styles[policy] = {
            "color": color,
            "linestyle": "-" if known else "--",
            # Shifted, so that two lines of one color have different marks too.
            "marker": MARKERS[(place + 2 * (not known)) % len(MARKERS)],
            "markerfacecolor": color if known or policy == DENSE else "white",
        }
    return styles


def _line(axes: Axes, axis: Axis, policy: str, results: Sequence[Measured], style: dict[str, Any]) -> None:
    points = sorted(
        [
            (result.metrics[COST].value, result.metrics[axis.metric])
            for result in results
            if axis.metric in result.metrics
        ],
        key=lambda point: point[0],
    )
    if axis.logarithmic:
        points = [(x, estimate) for x, estimate in points if estimate.value > 0]
    if not points:
        return
    x, y = [x for x, _ in points], [estimate.value for _, estimate in points]
    low, high = [estimate.low for _, estimate in points], [estimate.high for _, estimate in points]
    axes.plot(x, y, markersize=5.5, linewidth=1.6, label=policy, **style)
    floor = min(y) / 100 if axis.logarithmic else -float("inf")
    low = [max(value, floor) for value in low]
    if len(points) > 1:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    else:
        axes.vlines(x, low, high, color=style["color"], linewidth=1.6)


def curves_figure(results: Sequence[Measured]) -> Figure:
    """Draw KL, perplexity ratio and disagreement against the share of the FFN's bytes that is read, a panel each.

    One line a policy, through its results in the order of their cost; the band is each metric's 95% interval.

    Args:
        results: Results of one model on one text.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    styles = _styles({result.policy for result in results})
    for axes, axis in zip(figure.subplots(1, len(QUALITY), sharex=True), QUALITY, strict=True):
        for policy, style in styles.items():
            _line(axes, axis, policy, [result for result in results if result.policy == policy], style)
        if axis.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.axhline(axis.dense, color=GRAY, linewidth=1, linestyle=":")
        if axis.share:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_xlabel("bytes read (% of those that may be skipped)")
        axes.set_title(axis.label, fontsize=10, loc="left")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    return figure
