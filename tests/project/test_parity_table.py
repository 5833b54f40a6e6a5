"""Page of model types: read from runs of pytest, with no failure embellished."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "parity_table.py"


def case(name: str, inside: str = "", **properties: str) -> str:
    told = "".join(f'<property name="{key}" value="{value}"/>' for key, value in properties.items())
    return f'<testcase name="{name}"><properties>{told}</properties>{inside}</testcase>'


def exported(kind: str, inside: str = "", **found: str) -> str:
    paths = {f"path: {path}": value for path, value in found.items()}
    return case(f"{kind}-float32", inside, **{"model type": kind, "dtype": "float32"}, **paths)


def write(folder: Path, *runs: list[str]) -> subprocess.CompletedProcess[str]:
    files = []
    for number, cases in enumerate(runs):
        files.append(folder / f"{number}.xml")
        files[-1].write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    command = [sys.executable, SCRIPT, "--output", folder / "page.md", "--junitxml", *files]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


REFUSED = case("bert", **{"model type": "bert", "refused": "it is no decoder"})


def test_page_of_runs(tmp_path):
    failed = exported("opt", "<failure/>", native="2.0e-06")
    first = [REFUSED, exported("gpt2", "<failure/>"), failed, exported("llama", native="1.0e-06", bodies="3.0e-07")]
    result = write(tmp_path, first, [exported("gpt2", native="4.0e-06", bodies="5.0e-07")])
    assert result.returncode == 1
    page = (tmp_path / "page.md").read_text()
    assert "3 are exported" in " ".join(page.split())
    assert "| llama | 1.0e-06 | 3.0e-07 |" in page
    assert "| gpt2 | 4.0e-06 | 5.0e-07 |" in page
    assert "| opt | 2.0e-06 | **failed** |" in page
    assert "| bert | it is no decoder |" in page


def test_a_run_of_some_cases_is_no_page(tmp_path):
    result = write(tmp_path, [exported("llama", native="1.0e-06")])
    assert result.returncode == 1
    assert "not all cases were run" in result.stderr
    assert not (tmp_path / "page.md").exists()
