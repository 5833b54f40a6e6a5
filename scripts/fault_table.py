"""Writes docs/faults.md: each kind of fault found from outside, how many cases are tried, and what happens now.

The kinds are the tests' markers `@pytest.mark.fault(area, kind, now)`. A test is one case, or as many as it records as
its property "cases". Runs them, or reads what an earlier run wrote with `--junitxml`.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recorded_runs import ROOT, TableError, recorded, run_tests

TABLE = ROOT / "docs" / "faults.md"
# As the README has them: wrong results first.
AREAS = ("results", "native", "files", "text", "command line", "server", "installation")
# The properties by which tests/support/fault_marker.py writes a test's marker into the XML.
AREA, KIND, NOW, CASES = "fault area", "fault kind", "fault now", "cases"


@dataclass
class Row:
    """Kind of fault, with the results of its cases.

    Args:
        area: One of AREAS.
        kind: Kind of fault.
        now: Present behavior, as the tests say.
        passed: Cases of which a test found that so.
        failed: Those of which it did not, or which ended in an error.
        skipped: Those that could not be tried.
    """

    area: str
    kind: str
    now: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def cases(self) -> int:
        """Number of all cases."""
        return self.passed + self.failed + self.skipped


def rows_of(runs: list[str]) -> list[Row]:
    """Read the XML of runs; returns a row for each kind, in order of area and kind.

    Raises:
        TableError: It is no such XML, holds no test of a fault, or a marker that nobody can read.
    """
    rows: dict[tuple[str, str], Row] = {}
    for test in recorded(runs):
        if KIND not in test.properties:
            continue
        area, kind, now = (test.properties[name] for name in (AREA, KIND, NOW))
        if area not in AREAS:
            raise TableError(f"{test.name} is of the area {area!r}; it must be one of {', '.join(AREAS)}")
        row = rows.setdefault((area, kind), Row(area, kind, now))
        if row.now != now:
            raise TableError(f"tests of {kind!r} say two things of what happens now: {row.now!r} and {now!r}")
        cases = int(test.properties.get(CASES) or 1)
        if test.outcome == "failed":
            row.failed += cases
        elif test.outcome == "skipped":
            row.skipped += cases
        else:
            row.passed += cases
    if not rows:
        raise TableError("no test of a fault was run; pytest -m fault finds them")
    return sorted(rows.values(), key=lambda row: (AREAS.index(row.area), row.kind))


def _outcome(row: Row) -> str:
    said = [f"{count} {word}" for count, word in ((row.failed, "**failed**"), (row.skipped, "skipped")) if count]
    return ", ".join([str(row.passed), *said])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def table(rows: Iterable[Row]) -> str:
    """Format the page: a table for each area."""
    rows = list(rows)
    tried, passed = sum(r.passed + r.failed for r in rows), sum(r.passed for r in rows)
    lines = [
        "# What happens when something is wrong",
        "",
        "Kinds of faults that were found from outside or beside those, and what happens now. Tests try each of them;",
        "`python scripts/fault_table.py` runs these and writes this page.",
        "",
        f"{len(rows)} kinds, {tried:,} cases tried, {passed:,} of them as it says here.",
    ]
    for area in AREAS:
        of_area = [row for row in rows if row.area == area]
        if of_area:
            lines += ["", f"## {area[0].upper()}{area[1:]}", ""]
            lines += ["| what is tried | cases | passed | what happens now |", "|---|---:|---:|---|"]
            lines += [f"| {_cell(row.kind)} | {row.cases:,} | {_outcome(row)} | {_cell(row.now)} |" for row in of_area]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--junitxml", type=Path, nargs="+", help="read these instead of running the tests")
    parser.add_argument("--output", type=Path, default=TABLE, help="default: %(default)s")
    args, others = parser.parse_known_args()
    if args.junitxml and others:
        parser.error(f"{' '.join(others)}: arguments are for pytest, which does not run with --junitxml")
    try:
        files = args.junitxml or []
        rows = rows_of([path.read_text(encoding="utf-8") for path in files] or [run_tests(["-m", "fault", *others])])
    except (TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(table(rows), encoding="utf-8")
    print(f"written: {args.output}, {len(rows)} kinds")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
