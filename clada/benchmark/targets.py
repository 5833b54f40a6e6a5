"""Targets of sparsity on top of quantized weights, against the fastest dense kernels for such weights."""

from collections.abc import Iterator, Sequence

from clada.benchmark.contender import GENAI, dense, ours
from clada.benchmark.footprint import Footprint
from clada.benchmark.report import Table, Target

_MODEL = "llama-3.2-1b"
_SHAPES = (_MODEL, "llama-3-8b")
# Of a layer in decode: our contender, the one it is compared with, and how many times as fast it was to be.
_LAYER_RATIOS = (
    (ours(None, "int4"), dense("int4"), 1.0),
    (ours(0.6, "int4"), dense("int4"), 1.35),
    (ours(0.6, "int4"), dense("int4-block128"), 1.1),
    (ours(0.4, "int4"), dense("int4"), 1.7),
    (ours(0.4, "int4"), dense("int4-block128"), 1.4),
    (ours(0.4, "int8"), dense("int8"), 1.5),
)
# Of a whole model: this many times as fast; resident, at most this many times the weights; at most this many times as
# long to load.
_OURS = ours(0.4, "int4")
_MODEL_RATIO, _RESIDENT, _LOAD = 1.25, 1.15, 1.5


def _of_layer(table: Table) -> Iterator[Target]:
    rows = {row.name: row for row in table.rows}
    for name, other, wanted in _LAYER_RATIOS:
        reached = rows[name].against.get(other) if name in rows else None
        yield Target(f"{table.shape} layer, {name} against {other}", wanted, reached)


def _of_footprints(footprints: Sequence[Footprint]) -> Iterator[Target]:
    found = {one.name: one for one in footprints if one.shape == _MODEL}
    if not {_OURS, GENAI} <= set(found):
        return
    own, theirs = found[_OURS], found[GENAI]
    resident = own.resident_bytes / own.weight_bytes
    yield Target(f"{_MODEL}, {_OURS}, resident set over its weights", _RESIDENT, resident, at_most=True)
    load = own.load_seconds / theirs.load_seconds
    yield Target(f"{_MODEL}, {_OURS}, time to load over that of {GENAI}", _LOAD, load, at_most=True)


def targets(tables: Sequence[Table], footprints: Sequence[Footprint] = ()) -> list[Target]:
    """Targets of all measured tables; a figure that its table lacks counts as missed."""
    found: list[Target] = []
    for table in tables:
        if table.shape in _SHAPES and (table.what, table.phase) == ("layer", "decode"):
            found += _of_layer(table)
        if (table.shape, table.what) == (_MODEL, "genai"):
            reached = {row.name: row.ratio for row in table.rows}.get(_OURS)
            what = f"{_MODEL}, whole model, context {table.context}, {_OURS} against {GENAI}"
            found.append(Target(what, _MODEL_RATIO, reached))
    return [*found, *_of_footprints(footprints)]


def target_lines(found: Sequence[Target]) -> list[str]:
    """Format targets, one line each."""
    lines = []
    for target in found:
        reached = "not measured" if target.reached is None else f"{target.reached:.2f}x"
        bound = "at most" if target.at_most else "at least"
        verdict = "met" if target.met else "NOT MET"
        lines.append(f"{target.what}: {reached}, to be {bound} {target.wanted:.2f}x: {verdict}")
    return lines
