"""Plot of quality against speed: one line a system, the better the farther down and to the right."""

from io import BytesIO

from matplotlib.figure import Figure

from clada.benchmark.contender import LLAMA_CPP
from clada.benchmark.quality import Qualities
from clada.benchmark.report import Table

# Where a KL divergence is 0 but for rounding, which a logarithmic axis has no place for.
_LEAST = 1e-4


def _system(name: str) -> str:
    """System that a contender is one point of: "ours int4" of "ours 70% int4", "llama.cpp" of all of its files."""
    words = name.split()
    return LLAMA_CPP if words[0] == LLAMA_CPP else f"{words[0]} {words[-1]}"


def _label(name: str) -> str:
    """Name of a point within its system's line."""
    words = name.split()
    return " ".join(words[1:]) if words[0] == LLAMA_CPP else words[1]


def quality_plot(table: Table, qualities: Qualities, subtitle: str, form: str) -> bytes:
    """Draw KL divergence from the checkpoint against tokens per second.

    Args:
        table: Times in decode.
        qualities: Divergences of the same contenders.
        subtitle: The machine.
        form: The format, a suffix of PLOT_FORMATS.
    """
    kl = {one.name: max(one.kl.value, _LEAST) for one in qualities.of}
    systems: dict[str, list[tuple[float, float, str]]] = {}
    for row in table.rows:
        if row.ms is not None:
            point = (1e3 / row.ms, kl[row.name], _label(row.name))
            systems.setdefault(_system(row.name), []).append(point)
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for system, points in systems.items():
        speeds, divergences, labels = zip(*sorted(points), strict=True)
        axes.plot(speeds, divergences, marker="o", label=system)
        for speed, divergence, label in zip(speeds, divergences, labels, strict=True):
            axes.annotate(label, (speed, divergence), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_yscale("log")
    axes.set_xlabel(f"tokens per second in decode, after {table.context} tokens")
    axes.set_ylabel("KL from the checkpoint in float32, nats a token")
    axes.set_title(f"Quality against speed\n{subtitle}", fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    image = BytesIO()
    figure.savefig(image, format=form.removeprefix("."), dpi=150)
    return image.getvalue()
