"""What sparsity on top of quantised weights was to reach, against ONNX Runtime's dense graphs with such weights."""

from collections.abc import Sequence

from clada.benchmark.contender import dense, ours
from clada.benchmark.report import Table
from clada.benchmark.target import Target

_SHAPES = ("llama-3.2-1b", "llama-3-8b")
# Of a layer in decode: our contender, the one it is compared with, and how many times as fast it was to be.
_RATIOS = (
    (ours(None, "int4"), dense("int4"), 1.0),
    (ours(0.6, "int4"), dense("int4"), 1.35),
    (ours(0.6, "int4"), dense("int4-block128"), 1.1),
    (ours(0.4, "int4"), dense("int4"), 1.7),
    (ours(0.4, "int4"), dense("int4-block128"), 1.4),
    (ours(0.4, "int8"), dense("int8"), 1.5),
)


def targets(tables: Sequence[Table]) -> list[Target]:
    """All of a layer that was measured; what its table lacks was not reached."""
    found = []
    for table in tables:
        if table.shape not in _SHAPES or (table.what, table.phase) != ("layer", "decode"):
            continue
        rows = {row.name: row for row in table.rows}
        for name, other, wanted in _RATIOS:
            reached = rows[name].against.get(other) if name in rows else None
            found.append(Target(f"{table.shape} layer, {name} against {other}", wanted, reached))
    return found


def target_lines(found: Sequence[Target]) -> list[str]:
    """One line each."""
    lines = []
    for target in found:
        reached = "not measured" if target.reached is None else f"{target.reached:.2f}x"
        verdict = "met" if target.met else "NOT MET"
        lines.append(f"{target.what}: {reached}, to be at least {target.wanted:.2f}x: {verdict}")
    return lines
