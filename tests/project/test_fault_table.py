"""Table of faults: read from a real run of pytest, with no case lost and no result embellished."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "fault_table.py"
TESTS = """
import pytest

@pytest.mark.fault("files", "a | in a kind", now="refused in one line")
@pytest.mark.parametrize("case", [1, 2])
def test_two(case):
    pass

@pytest.mark.fault("files", "a | in a kind", now="refused in one line")
def test_many(record_property):
    record_property("cases", 40)

@pytest.mark.fault("results", "one that fails", now="right")
def test_bad(record_property):
    record_property("cases", 7)
    assert False

@pytest.mark.fault("text", "one that cannot be tried", now="refused")
def test_skipped():
    pytest.skip("not here")

@pytest.mark.fault("results", "an error in a fixture", now="right")
def test_error(absent):
    pass

def test_of_nothing():
    pass
"""


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--output", folder / "faults.md", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=folder)


def run_pytest(folder: Path, tests: str) -> Path:
    """The XML of a run of these tests, with the project's conftest."""
    (folder / "conftest.py").write_text(
        "from tests.support.fault_marker import write_markers as pytest_collection_modifyitems\n"
    )
    (folder / "test_some.py").write_text(tests)
    xml = folder / "run.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={folder}", "-c", ROOT / "pyproject.toml"]
    subprocess.run([*command, f"--junitxml={xml}", folder], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    return xml


def test_table_of_a_run(tmp_path):
    result = run(tmp_path, "--junitxml", run_pytest(tmp_path, TESTS))
    assert result.returncode == 1, result.stderr  # one fails
    page = (tmp_path / "faults.md").read_text().splitlines()
    assert [line for line in page if line.startswith(("## ", "| a", "| o"))] == [
        "## Results",
        "| an error in a fixture | 1 | 0, 1 **failed** | right |",
        "| one that fails | 7 | 0, 7 **failed** | right |",
        "## Files",
        "| a \\| in a kind | 42 | 42 | refused in one line |",
        "## Text",
        "| one that cannot be tried | 1 | 0, 1 skipped | refused |",
    ]
    assert "4 kinds, 50 cases tried, 42 of them as it says here." in page


def of_kind(area: str = "files", kind: str = "k", now: str = "n") -> str:
    properties = {"fault area": area, "fault kind": kind, "fault now": now}
    return "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())


@pytest.mark.parametrize(
    ("tests", "complaint"),
    [
        ([""], "no test of a fault was run"),
        ([of_kind("else")], "is of the area 'else'"),
        ([of_kind(now="one"), of_kind(now="another")], "say two things of what happens now"),
        (["<"], "is not what pytest --junitxml writes"),
    ],
)
def test_what_cannot_be_a_table_says_why(tmp_path, tests, complaint):
    cases = "".join(f'<testcase name="test"><properties>{test}</properties></testcase>' for test in tests)
    (tmp_path / "run.xml").write_text(f"<testsuite>{cases}</testsuite>")
    result = run(tmp_path, "--junitxml", tmp_path / "run.xml")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr
    assert not (tmp_path / "faults.md").exists()
