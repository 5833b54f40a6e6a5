"""Bar charts of the figures."""

from collections.abc import Sequence
from io import BytesIO

from matplotlib.figure import Figure

from clada.benchmark.report import Table

_COLORS = {"ours": "tab:blue", "ORT": "tab:gray", "torch": "tab:brown", "genai": "tab:olive"}


def _milliseconds(value: float) -> str:
    """Format milliseconds with about three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} ms"


def plot(tables: Sequence[Table], subtitle: str, form: str) -> bytes:
    """Draw one panel per table: the speed of each contender relative to the reference.

    Args:
        tables: Measurements.
        subtitle: The machine.
        form: The format, a suffix of PLOT_FORMATS.
    """
    counts = [sum(not row.missing for row in table.rows) for table in tables]
    figure = Figure(figsize=(9, 1.2 + sum(0.9 + 0.27 * count for count in counts)), layout="constrained")
    figure.suptitle(f"Speed of decode and prefill\n{subtitle}", fontsize=11)
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=[1.5 + count for count in counts])
    for panel, table in zip(panels[:, 0], tables, strict=True):
        rows = [row for row in table.rows if row.ratio is not None and row.ms is not None]
        ratios = [row.ratio or 0.0 for row in rows]
        colors = [_COLORS[row.name.split()[0]] for row in rows]
        bars = panel.barh([row.name for row in rows], ratios, color=colors)
        panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
        labels = [f"{row.ratio:.2f}x   {_milliseconds(row.ms or 0.0)}" for row in rows]
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        panel.bar_label(bars, labels, fontsize=8, padding=4, bbox=background)
        panel.set_xlim(0, 1.25 * max(ratios))
        panel.invert_yaxis()
        panel.tick_params(labelsize=8)
        panel.set_title(f"{table.title}, against {table.reference}", fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    image = BytesIO()
    figure.savefig(image, format=form.removeprefix("."), dpi=150)
    return image.getvalue()
