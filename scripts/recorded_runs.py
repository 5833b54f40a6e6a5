"""Results that runs of the tests record, for the tables that are made of them."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent


class TableError(Exception):
    """Error that prevents writing: one line, with the remedy."""


@dataclass(frozen=True)
class Recorded:
    """Outcome of a test, and the properties that it recorded."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    properties: dict[str, str]


def run_tests(arguments: Sequence[str]) -> str:
    """Run pytest in the project with these arguments; returns its XML."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "run.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={xml}", *arguments]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if not xml.exists():
            raise TableError("pytest wrote no XML; what it says is above")
        return xml.read_text(encoding="utf-8")


def recorded(runs: Sequence[str]) -> Iterator[Recorded]:
    """Read the XML of runs, test by test.

    Raises:
        TableError: It is no such XML.
    """
    try:
        tests = [test for xml in runs for test in ElementTree.fromstring(xml).iter("testcase")]
    except ElementTree.ParseError as error:
        raise TableError(f"this is not what pytest --junitxml writes: {error}") from error
    for test in tests:
        failed = test.find("failure") is not None or test.find("error") is not None
        skipped = test.find("skipped") is not None
        yield Recorded(
            str(test.get("name")),
            "failed" if failed else "skipped" if skipped else "passed",
            {str(p.get("name")): p.get("value", "") for p in test.iter("property")},
        )
