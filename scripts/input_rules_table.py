"""Prints Markdown tables of the results that compare_input_rules.py wrote to files named *-code.json or *-prose.json.

What stands beside a figure compares with the first rule at as many bytes, over the same sequences, in pairs.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clada.evaluation.statistics import (
    Statistic,
    bootstrap,
    difference,
    exp_difference,
    exp_mean,
    mean,
    mean_with_interval,
    ratio,
)
from clada.evaluation.subject import Floats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "input_rules"
# By the end of a file's name, in the order of the tables.
TEXTS = {"code": "Code", "prose": "Prose"}

Row = Mapping[str, Any]


def _column(row: Row, name: str) -> Floats:
    return np.array(row[name], np.float64)


def _value(statistic: Statistic, row: Row, name: str) -> float:
    return float(statistic(_column(row, name)))


def _beside(statistic: Statistic, row: Row, first: Row, name: str, form: str) -> str:
    """Difference of two rules in a figure, with its interval; empty for the first itself."""
    if row is first:
        return ""
    found = bootstrap(statistic, [_column(row, name), _column(first, name)])
    assert found is not None
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def _cells(row: Row, first: Row) -> list[str]:
    parts = " ".join(f"{part} {share:.0%}" for part, share in row["read of parts"].items())
    rule, _, sparse = row["rule"].partition(": ")
    return [
        rule,
        sparse or "ffn, by neurons",
        f"{_value(mean, row, 'read'):.1%} ({parts})",
        mean_with_interval(_column(row, "divergence"), ".4f"),
        _beside(ratio, row, first, "divergence", ".2f"),
        f"{_value(mean, row, 'changed'):.1%}",
        f"{_value(exp_mean, row, 'nll'):.3f}",
        _beside(exp_difference, row, first, "nll", ".3f"),
        f"{_value(mean, row, 'accuracy'):.1%}",
        _beside(difference, row, first, "accuracy", "+.1%"),
    ]


def table(dense: Row, rows: Sequence[Row], asked: float) -> list[str]:
    """Table of the rules at one share, after the dense model."""
    chosen = [row for row in rows if row["asked"] == asked]
    lines = [
        f"| rule at {asked:.0%} | may be sparse | bytes read (of each) | KL, nats a token | times the first's "
        "| next tokens changed | perplexity | times the first's | next tokens right | beside the first's |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| dense | nothing | 100% | 0 | | 0% | {_value(exp_mean, dense, 'nll'):.3f} | "
        f"| {_value(mean, dense, 'accuracy'):.1%} | |",
    ]
    return lines + [f"| {' | '.join(_cells(row, chosen[0]))} |" for row in chosen]


def block(results: Path) -> str:
    """Format all tables."""
    lines: list[str] = []
    for name, heading in TEXTS.items():
        for path in sorted(results.glob(f"*-{name}.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            sequences = len(found["dense"]["nll"])
            lines += [f"**{heading}**, {sequences} sequences:", ""]
            for asked in dict.fromkeys(row["asked"] for row in found["rules"]):
                lines += [*table(found["dense"], found["rules"], asked), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    print(block(parser.parse_args().results))


if __name__ == "__main__":
    main()
