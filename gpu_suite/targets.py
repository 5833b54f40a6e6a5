"""What was to be reached, and what was."""

from collections.abc import Iterator, Sequence

from clada.benchmark.report import Row, Table, Target
from gpu_suite.tables import IN_GRAPH, LAYER

_SHAPE = "llama-3-8b"
_BANDWIDTH_SHARE, _BANDWIDTH_ACTIVE = 0.8, (0.6, 0.4)
_LAYER_RATIO, _LAYER_ACTIVE = 1.6, 0.4
_MODEL_RATIO, _MODEL_ACTIVE = 1.3, 0.4
MODEL = "model"


def _ours(tables: Sequence[Table], active: float) -> Iterator[Row]:
    """Our rows of a layer's decode in a graph, one sequence, at a share of neurons."""
    for table in tables:
        if (table.shape, table.what, table.phase, table.tokens) == (_SHAPE, LAYER, IN_GRAPH, 1):
            yield from (row for row in table.rows if row.active_target == active)


def targets(tables: Sequence[Table]) -> list[Target]:
    """All targets; of a figure that was measured for several types, the lowest."""
    found = []
    for active in _BANDWIDTH_ACTIVE:
        shares = [row.floor_share for row in _ours(tables, active) if row.floor_share is not None]
        what = f"share of copy bandwidth, {_SHAPE} layer, {active:.0%} active"
        found.append(Target(what, _BANDWIDTH_SHARE, min(shares, default=None)))
    ratios = [row.ratio for row in _ours(tables, _LAYER_ACTIVE) if row.ratio is not None]
    what = f"times as fast as dense cuBLAS, {_SHAPE} layer, {_LAYER_ACTIVE:.0%} active"
    found.append(Target(what, _LAYER_RATIO, min(ratios, default=None)))
    whole = [
        row.ratio
        for table in tables
        if table.what == MODEL and table.tokens == 1
        for row in table.rows
        if row.active_target == _MODEL_ACTIVE and row.ratio is not None
    ]
    what = f"times as fast as dense, whole model, decode, {_MODEL_ACTIVE:.0%} active"
    return [*found, Target(what, _MODEL_RATIO, min(whole, default=None))]


def target_lines(found: Sequence[Target]) -> list[str]:
    """A Markdown table of them."""
    lines = ["| target | wanted | reached | met |", "|---|---|---|---|"]
    for target in found:
        reached = "not measured" if target.reached is None else f"{target.reached:.2f}"
        lines.append(f"| {target.what} | {target.wanted:.2f} | {reached} | {'yes' if target.met else 'no'} |")
    return lines
