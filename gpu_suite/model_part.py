"""The suite's part about whole models: whether it can be done here, and what it found."""

from collections.abc import Iterator
from pathlib import Path

from clada.benchmark.report import Table
from clada.benchmark.shapes import TINY, Shape
from clada.errors import CladaError
from gpu_suite.bandwidth import copy_bandwidth
from gpu_suite.custom_ops import build_custom_ops
from gpu_suite.model_needs import headers, missing
from gpu_suite.tables import LeftOut, Timing
from gpu_suite.targets import MODEL

_SHAPES = ("llama-3.2-1b", TINY)


def whole_models(root: Path, kernels: Path, timing: Timing, shapes: list[Shape]) -> Iterator[Table | LeftOut]:
    """Time whole models, those of the shapes that are measured whole.

    Args:
        root: The checkout.
        kernels: The library of kernels for this card.
        timing: How.
        shapes: What the suite was asked for.
    """
    chosen = [shape for shape in shapes if shape.name in _SHAPES]
    if not chosen:
        return
    wants = missing(root)
    if wants:
        yield LeftOut(MODEL, f"it needs more than this machine has: {wants}")
        return
    try:
        # Only now: the machine need not have what these import.
        from clada.plugins.onnxruntime import use_library
        from clada.runtime.models.ort_cuda_session import check_cuda
        from gpu_suite.model import model_tables, written_model

        folder = headers(root)
        assert folder is not None
        if timing.kernels.device.name == "cuda":
            check_cuda()
            use_library("cuda", build_custom_ops(root, kernels, folder))
        fractions = [fraction for fraction in timing.fractions if fraction < 1]
        bandwidth = copy_bandwidth(timing.kernels.device, timing.cache_bytes)
        for shape in chosen:
            with written_model(shape, fractions) as files:
                yield from model_tables(timing, files, shape, bandwidth)
    except (CladaError, ImportError) as error:
        yield LeftOut(MODEL, str(error).splitlines()[0])
