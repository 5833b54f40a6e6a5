"""The graphs that are compared, each in its file, and what a token reads of each."""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from clada.benchmark.dense import make_dense
from clada.benchmark.floor import weight_bytes
from clada.benchmark.int4 import make_int4
from clada.benchmark.storage import save_beside


@dataclass(frozen=True)
class Graph:
    """A graph on disk.

    Args:
        path: Its file.
        neuron_bytes: Size of our ops' matrices.
        other_bytes: Size of all other matrices that a token is multiplied with.
    """

    path: Path
    neuron_bytes: int
    other_bytes: int


@dataclass(frozen=True)
class Variants:
    """One model as three graphs: with our ops, dense, and dense with 4-bit weights."""

    ours: Graph
    dense: Graph
    int4: Graph


def _saved(model: onnx_ir.Model, path: Path) -> Graph:
    save_beside(model, path)
    return Graph(path, *weight_bytes(model))


def write_pair(model: onnx_ir.Model, folder: Path) -> tuple[Graph, Graph]:
    """Write a model with our ops, and the dense one."""
    ours = _saved(model, folder / "ours.onnx")
    derived = onnx_ir.load(ours.path)
    make_dense(derived)
    return ours, _saved(derived, folder / "dense.onnx")


def write_variants(model: onnx_ir.Model, folder: Path) -> Variants:
    """Write a model with our ops, and what is derived from it."""
    ours, dense = write_pair(model, folder)
    derived = onnx_ir.load(dense.path)
    make_int4(derived)
    return Variants(ours, dense, _saved(derived, folder / "int4.onnx"))
