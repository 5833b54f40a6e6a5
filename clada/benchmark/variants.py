"""Graphs to compare, each in its file, and the bytes that a token reads of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from clada.benchmark.dense import make_dense
from clada.benchmark.floor import weight_bytes
from clada.benchmark.matmul_nbits import make_products_quantized
from clada.benchmark.precisions import BLOCKS
from clada.benchmark.quantized_graph import make_quantized
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
    """One model as graphs with our ops, and as dense ones, by the precision of the weights in the file."""

    ours: Mapping[str, Graph]
    dense: Mapping[str, Graph]

    def of(self, precision: str) -> Graph:
        """Graph with our ops to load for a precision: bfloat16 is rounded from float32 while it is loaded."""
        return self.ours["float32" if precision == "bfloat16" else precision]

    def neuron_bytes(self, precision: str) -> float:
        """Size of our ops' matrices once they are loaded."""
        return self.of(precision).neuron_bytes / (2 if precision == "bfloat16" else 1)


def _saved(model: onnx_ir.Model, path: Path) -> Graph:
    save_beside(model, path)
    return Graph(path, *weight_bytes(model))


def write_pair(model: onnx_ir.Model, folder: Path) -> tuple[Graph, Graph]:
    """Write a model with our ops, and the dense one."""
    ours = _saved(model, folder / "ours.onnx")
    derived = onnx_ir.load(ours.path)
    make_dense(derived)
    return ours, _saved(derived, folder / "dense.onnx")


def write_variants(model: onnx_ir.Model, folder: Path, precisions: Sequence[str]) -> Variants:
    """Write a model in float32 with our ops, and its dense and quantized variants.

    Args:
        model: In float32.
        folder: Where.
        precisions: Of PRECISIONS; those that are kept in files of their own are derived.
    """
    ours, dense = write_pair(model, folder)
    sparse_graphs, dense_graphs = {"float32": ours}, {"float32": dense}
    for precision in precisions:
        if precision in BLOCKS:
            sparse, products = onnx_ir.load(ours.path), onnx_ir.load(dense.path)
            make_quantized(sparse, BLOCKS[precision])
            make_products_quantized(products, BLOCKS[precision])
            sparse_graphs[precision] = _saved(sparse, folder / f"ours-{precision}.onnx")
            dense_graphs[precision] = _saved(products, folder / f"dense-{precision}.onnx")
    return Variants(sparse_graphs, dense_graphs)
