"""The native kernels through ONNX Runtime, given nodes that no export makes."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CASES = 600


@pytest.mark.fault(
    "native", "odd sizes, ranks, types, inputs and attributes of a node", now="right outputs, or one line"
)
def test_no_node_ends_the_process(record_property):
    command = [sys.executable, "-m", "tests.support.fuzz_ops", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    assert lines[-1] == f"{CASES} cases"
    record_property("cases", CASES)
