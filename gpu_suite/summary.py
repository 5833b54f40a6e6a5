"""What the checks came to, and everything as text and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clada.benchmark.report import Row, Table
from gpu_suite.parity import Check
from gpu_suite.tables import LeftOut
from gpu_suite.targets import target_lines, targets


@dataclass(frozen=True)
class Parity:
    """What the checks of one op in one type came to.

    Args:
        subject: The op and the type.
        checks: How many.
        required: The largest error over what is allowed, of those checks that allow any.
        failed: Those that did not pass.
    """

    subject: str
    checks: int
    required: float
    failed: tuple[Check, ...]


def parity(checks: Sequence[Check]) -> list[Parity]:
    """The checks by op and type, in the order in which those came."""
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
    """A Markdown table of them, and a line for each failure."""
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
    """Every time, as one Markdown table."""
    header = ["what", "phase", "contender", "µs", "quartiles", "vs torch", "GB/s", "of copy bandwidth", "neurons read"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [_row_line(table, row) for table in tables for row in table.rows if not row.missing]


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Args:
        machine: The card, the host and the versions.
        settings: How it was measured.
        parity: Of every op and type.
        tables: Times.
        left_out: What was not done.
    """

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    parity: tuple[Parity, ...] = ()
    tables: tuple[Table, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return not any(p.failed for p in self.parity)


def markdown(report: Report) -> str:
    """All of it, for a person."""
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
    """JSON has no NaN and no infinity: those become words."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_text(report: Report) -> str:
    """All of it, for a program."""
    content = asdict(report) | {"targets": [asdict(t) | {"met": t.met} for t in targets(report.tables)]}
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"
