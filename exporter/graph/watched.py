"""Copy of a graph that also outputs the inputs and scales of its sparse products, from which their decisions follow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from clada.ops import DOMAIN, QUANTIZED_LINEAR, SPARSE_LINEAR, graph_names

_OPS = {op.name: op for op in (SPARSE_LINEAR, QUANTIZED_LINEAR)}


@dataclass(frozen=True)
class Watched:
    """Graph with additional outputs, and their names.

    Args:
        path: Its file.
        x: Inputs T[..., D] of each product; empty where no inputs are skipped.
        scale: Scale f32[B, S] of each product.
        quantized: Whether the products' weights are.
    """

    path: Path
    x: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    quantized: bool = False


@contextmanager
def watched(path: Path) -> Iterator[Watched]:
    """Write the copy, for the time of the context, beside the graph, whose weights it reads.

    A graph that skips neurons is given as it is: its scores tell what was kept.
    """
    model = onnx.load(path, load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in _OPS]
    if not nodes:
        yield Watched(path)
        return
    inputs = [spec.name for spec in _OPS[nodes[0].op_type].inputs]
    at = {name: inputs.index(name) for name in ("x", "threshold", "scale")}
    by_threshold = {node.input[at["threshold"]]: node for node in nodes}
    ordered = [by_threshold[graph_names.threshold(n)] for n in range(len(nodes))]
    x, scale = (tuple(node.input[at[name]] for node in ordered) for name in ("x", "scale"))
    there = {value.name for value in model.graph.output}
    known = {value.name: value for value in model.graph.value_info}
    for name in dict.fromkeys([*x, *scale]):
        if name not in there:
            model.graph.output.append(known[name])
    copy = path.with_name(f"{path.stem}.watched{path.suffix}")
    try:
        onnx.save(model, copy)
        yield Watched(copy, x, scale, nodes[0].op_type == QUANTIZED_LINEAR.name)
    finally:
        copy.unlink(missing_ok=True)
