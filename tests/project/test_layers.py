"""Imports go one way: between packages, between the folders of each, and between files."""

import ast
from pathlib import Path

import pytest

from tests.support.tree import package_files

# Each stands on those before it. What a list leaves out is held by the rule that there is no circle alone.
LAYERS = {
    "clada": [
        "errors",
        "command_line",
        "ops",
        "contract",
        "plugins",
        "runtime",
        "server",
        "exporter",
        "evaluation",
        "benchmark",
    ],
    "clada.exporter": ["model", "quantization", "calibration", "graph"],
    "clada.runtime": [
        "models",
        "trt",
        "chat",
        "loading",
        "steps",
        "batch",
        "prefix",
        "generation",
        "session",
        "conversation",
    ],
    "clada.runtime.trt": ["package", "building"],
    "clada.server": ["limits", "jobs", "scheduler", "preparation", "service", "app", "serving", "command"],
}


def modules() -> dict[str, Path]:
    """The files of clada and of the GPU suite by module; a package's own is that of its __init__."""
    files = package_files("clada") | package_files("gpu_suite")
    return {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for name, path in files.items()}


MODULES = modules()


def imported(module: str) -> set[str]:
    """The modules of ours that one imports, wherever in it: in a function and for the type checker alone, too."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name in MODULES} - {module}


def test_all_of_the_tree_is_seen():
    assert {"clada.ops.record", "clada.runtime.models.base", "clada.exporter.graph.trace", "gpu_suite.suite"} <= set(
        MODULES
    )


@pytest.mark.parametrize("package", LAYERS)
def test_no_arrow_runs_up(package):
    order = LAYERS[package]

    def floor(module: str) -> int:
        name = module.removeprefix(f"{package}.").partition(".")[0]
        return order.index(name) if module.startswith(f"{package}.") and name in order else -1

    up = [
        f"{module} imports {other}"
        for module in MODULES
        if floor(module) >= 0
        for other in imported(module)
        if floor(other) > floor(module)
    ]
    assert not up


def test_nothing_stands_on_the_server():
    assert not [
        name
        for name in MODULES
        if not name.startswith("clada.server") and any(other.startswith("clada.server") for other in imported(name))
    ]


def test_there_is_no_circle():
    """Of files; a package's __init__ may name what lies in it."""
    arrows = {module: imported(module) for module in MODULES if MODULES[module].name != "__init__.py"}
    while leaves := [module for module, others in arrows.items() if not others & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows
