"""Copy of an artifact's graph with ONNX Runtime's own products in the place of ours."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir

from clada.benchmark.dense import make_dense
from clada.benchmark.matmul_nbits import make_products_quantized
from clada.benchmark.precisions import Blocks
from clada.benchmark.storage import save_beside
from clada.errors import CladaError


@contextmanager
def dense_copy(graph: Path, blocks: Blocks | None) -> Iterator[Path]:
    """Write a copy with ONNX Runtime's own products in the place of ours; it is removed when the context ends.

    Args:
        graph: The artifact's for one text.
        blocks: How its weights are quantized; None where they are not. ONNX Runtime's scales lie along the inputs, so
            that the same weights are rounded once more, to as many bits.

    Raises:
        CladaError: A file of weights has another name besides, as while another benchmark of it runs.
    """
    model = onnx_ir.load(graph)
    make_dense(model)
    if blocks is not None:
        _check_linked_once(graph.parent, _external_files(model))
        make_products_quantized(model, blocks)
    # A graph may refer to no weights but those of its own folder.
    with TemporaryDirectory(prefix=".clada-bench-", dir=graph.parent) as folder:
        path = Path(folder) / graph.name
        for name in _external_files(model):
            _link_or_copy(graph.parent / name, Path(folder) / name)
        save_beside(model, path)
        yield path


def _check_linked_once(folder: Path, names: set[str]) -> None:
    """onnx_ir reads no file of several names, lest one lead out of the folder."""
    for name in sorted(names):
        if (folder / name).stat().st_nlink > 1:
            raise CladaError(
                f"{folder / name} has another name besides (a hard link), as while another `clada bench` of it runs; "
                "wait for that, or copy the folder"
            )


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on a file system without hard links
        shutil.copy(source, target)


def _external_files(model: onnx_ir.Model) -> set[str]:
    values = (value.const_value for value in model.graph.initializers.values())
    return {str(value.location) for value in values if isinstance(value, onnx_ir.ExternalTensor)}
