"""The report, as text and as JSON: checks, times, targets, and the machine."""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clada.benchmark.machine import host
from clada.benchmark.report import Row, Table, Target
from clada.errors import CladaError
from gpu_suite.build import nvcc_path
from gpu_suite.checks import Check
from gpu_suite.device import Card
from gpu_suite.timing import IN_GRAPH, LAYER, LeftOut

_OPTIONAL_PACKAGES = ("onnxruntime-gpu", "tensorrt", "transformers")
_TARGET_SHAPE = "llama-3-8b"
_BANDWIDTH_SHARE, _BANDWIDTH_ACTIVE = 0.8, (0.6, 0.4)
_LAYER_RATIO, _LAYER_ACTIVE = 1.6, 0.4
_MODEL_RATIO, _MODEL_ACTIVE = 1.3, 0.4
MODEL = "model"


def _nvcc_version() -> str:
    """Of this machine's; empty where there is none."""
    try:
        text = subprocess.run([nvcc_path(), "--version"], capture_output=True, text=True, check=False).stdout
    except CladaError:
        return ""
    return next((line.rsplit(",", 1)[-1].strip() for line in text.splitlines() if "release" in line), "")


def _commit(root: Path) -> str:
    """Of the checkout; empty where git does not know, with a plus where it was changed."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return result.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "torch's CUDA": str(torch.version.cuda), "numpy": np.__version__}
    return found | {name: installed for name in _OPTIONAL_PACKAGES if (installed := _version(name))}


def machine(card: Card, root: Path) -> dict[str, Any]:
    """The card, the host, the checkout and the versions."""
    versions = {"driver": card.driver, "nvcc": _nvcc_version(), **_versions()}
    return {"card": asdict(card), "host": host(), "commit": _commit(root), "versions": versions}


def _layer_rows(tables: Sequence[Table], active: float) -> Iterator[Row]:
    """Our rows of a layer's decode in a graph, one sequence, at a share of neurons."""
    for table in tables:
        if (table.shape, table.what, table.phase, table.tokens) == (_TARGET_SHAPE, LAYER, IN_GRAPH, 1):
            yield from (row for row in table.rows if row.active_target == active)


def targets(tables: Sequence[Table]) -> list[Target]:
    """All targets; of a figure that was measured for several types, the lowest."""
    found = []
    for active in _BANDWIDTH_ACTIVE:
        shares = [row.floor_share for row in _layer_rows(tables, active) if row.floor_share is not None]
        what = f"share of copy bandwidth, {_TARGET_SHAPE} layer, {active:.0%} active"
        found.append(Target(what, _BANDWIDTH_SHARE, min(shares, default=None)))
    ratios = [row.ratio for row in _layer_rows(tables, _LAYER_ACTIVE) if row.ratio is not None]
    what = f"times as fast as dense cuBLAS, {_TARGET_SHAPE} layer, {_LAYER_ACTIVE:.0%} active"
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


@dataclass(frozen=True)
class Parity:
    """Result of the checks of one op in one type.

    Args:
        subject: The op and the type.
        checks: Number of checks.
        required: The largest error over what is allowed, of those checks that allow any.
        failed: Those that did not pass.
    """

    subject: str
    checks: int
    required: float
    failed: tuple[Check, ...]


def parity(checks: Sequence[Check]) -> list[Parity]:
    """Group the checks by op and type, in their order of appearance."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(" ".join(check.subject.split()[:2]), []).append(check)
    return [
        Parity(
            subject,
            len(group),
            max((check.error / check.allowed for check in group if check.allowed), default=0.0),
            tuple(check for check in group if not check.passed),
        )
        for subject, group in groups.items()
    ]


def parity_lines(found: Sequence[Parity]) -> list[str]:
    """Format the parity as a Markdown table, and a line for each failure."""
    lines = ["| op | checks | failed | largest error / allowed |", "|---|---|---|---|"]
    lines += [f"| {p.subject} | {p.checks} | {len(p.failed)} | {p.required:.2f} |" for p in found]
    failures = [check for p in found for check in p.failed]
    return lines + [f"FAILED {c.subject}: {c.what}: {c.error:.3g}, allowed {c.allowed:.3g}" for c in failures]


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else format(value, form) + unit


def _row_line(table: Table, row: Row) -> str:
    low, high = (1e3 * value for value in row.ms_quartiles or (math.nan, math.nan))
    cells = [
        f"{table.shape}, {table.what}",
        f"{table.phase}, {table.tokens} token{'s' * (table.tokens > 1)}",
        row.name,
        _cell(None if row.ms is None else 1e3 * row.ms, ".2f"),
        f"{low:.2f} - {high:.2f}",
        _cell(row.ratio, ".2f", "x"),
        _cell(row.gigabytes_per_second, ".0f"),
        _cell(row.floor_share, ".0%"),
        _cell(row.active, ".1%"),
    ]
    return f"| {' | '.join(cells)} |"


def table_lines(tables: Sequence[Table]) -> list[str]:
    """Format all times as one Markdown table."""
    header = ["what", "phase", "contender", "µs", "quartiles", "vs torch", "GB/s", "of copy bandwidth", "neurons read"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [_row_line(table, row) for table in tables for row in table.rows if not row.missing]


@dataclass(frozen=True)
class Report:
    """Results of the suite.

    Args:
        machine: The card, the host and the versions.
        settings: Settings of the measurements.
        parity: Parity of every op and type.
        tables: Times.
        left_out: Skipped measurements.
    """

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    parity: tuple[Parity, ...] = ()
    tables: tuple[Table, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not any(p.failed for p in self.parity)


def markdown(report: Report) -> str:
    """Format the report in Markdown."""
    card = report.machine["card"]
    lines = [
        f"# {card['name']}",
        "",
        ", ".join(f"{name} {value}" for name, value in report.machine["versions"].items()),
    ]
    if report.parity:
        lines += ["", *parity_lines(report.parity)]
    if report.tables:
        lines += ["", *table_lines(report.tables)]
    lines += ["", *target_lines(targets(report.tables))]
    if report.left_out:
        lines += ["", *(f"- left out: {left.what}: {left.why}" for left in report.left_out)]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by words."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_text(report: Report) -> str:
    """Serialize the report as JSON."""
    content = asdict(report) | {"targets": [asdict(t) | {"met": t.met} for t in targets(report.tables)]}
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"
