"""Where things are that tests use, and the order of the tests."""

import os
from pathlib import Path

import pytest

from tests.support.fault_marker import write_markers

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "models" / "demo"
# Code that nothing was calibrated on.
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
# Where `make` puts ONNX Runtime's headers: builds that tests start find them too.
os.environ.setdefault("CLADA_ONNXRUNTIME_INCLUDE", str(ROOT / "build" / "onnxruntime"))


def built_for_cuda(name: str) -> Path:
    """A library that `make test-cuda` links, which no installation has that did not ask for it; skips where none is.

    `make test` sets CLADA_CUDA_BUILD, and then it must be there.
    """
    path = ROOT / "build" / "cuda" / "plugins" / name
    if not path.exists():
        why = f"there is no {path.relative_to(ROOT)}, which `make test-cuda` links"
        if "CLADA_CUDA_BUILD" in os.environ:
            pytest.fail(why)
        pytest.skip(why)
    return path


# The files that take longest, the longest first: begun last, one would keep a process busy long after the other's end.
LONGEST = [
    "test_readme.py",
    "test_build.py",
    "test_export.py",
    "test_install.py",
    "test_demo.py",
    "test_quantize.py",
    "test_real_sizes.py",
    "test_scripts.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first; a test's fault marker goes into the XML, for scripts/fault_table.py."""
    items.sort(key=lambda item: [*LONGEST, item.path.name].index(item.path.name))
    write_markers(items)


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests run: torch takes seconds, and who hands out tests to processes needs none of it."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        config.pluginmanager.import_plugin("tests.support.artifacts")
