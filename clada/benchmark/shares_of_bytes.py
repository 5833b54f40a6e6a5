"""Benchmark of an artifact that skips inputs, at shares of its bytes, beside ONNX Runtime's dense graph."""

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir

from clada.benchmark.contender import Contender, always, checked_error, dense, ours
from clada.benchmark.decode_loops import TOKENS, OurLoop
from clada.benchmark.dense import make_dense
from clada.benchmark.floor import read_bandwidth
from clada.benchmark.matmul_nbits import make_products_quantized
from clada.benchmark.precisions import Blocks
from clada.benchmark.report import Table, rows
from clada.benchmark.settings import BenchSettings
from clada.benchmark.storage import save_beside
from clada.benchmark.timing import measure
from clada.errors import CladaError
from clada.runtime import Session
from clada.runtime.find_model import find_model
from clada.runtime.models.ort_cpu import Execution
from clada.runtime.models.ort_cpu_in_place import InPlaceModel


@contextmanager
def _dense_graph(graph: Path, blocks: Blocks | None) -> Iterator[Path]:
    """Write a copy with ONNX Runtime's own products in the place of ours; it is removed when the context ends.

    Args:
        graph: The artifact's for one text.
        blocks: How its weights are quantized; None where they are not. ONNX Runtime's scales lie along the inputs, so
            that the same weights are rounded once more, to as many bits.
    """
    model = onnx_ir.load(graph)
    make_dense(model)
    if blocks is not None:
        make_products_quantized(model, blocks)
    # A graph may refer to no weights but those of its own folder.
    with TemporaryDirectory(prefix=".clada-bench-", dir=graph.parent) as folder:
        path = Path(folder) / graph.name
        for name in _external_files(model):
            _link_or_copy(graph.parent / name, Path(folder) / name)
        save_beside(model, path)
        yield path


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on a file system without hard links
        shutil.copy(source, target)


def _external_files(model: onnx_ir.Model) -> set[str]:
    values = (value.const_value for value in model.graph.initializers.values())
    return {str(value.location) for value in values if isinstance(value, onnx_ir.ExternalTensor)}


def _precision(session: Session) -> str:
    quantization = session.manifest.quantization
    return session.manifest.model.dtype if quantization is None else f"int{quantization.bits}"


def _weight_bytes(session: Session) -> float:
    """Bytes per weight, its part of the scale included."""
    quantization = session.manifest.quantization
    if quantization is None:
        return float(np.dtype(session.manifest.model.dtype).itemsize)
    return quantization.bits / 8 + 2 / quantization.block_size


def artifact_table(path: Path, shares: Sequence[float], context: int, text: str, settings: BenchSettings) -> Table:
    """Time decoding, token by token, the same text after the same prompt.

    Args:
        path: The artifact's .onnx file or folder.
        shares: Shares of its weights' bytes to read; 1 is dense.
        context: Tokens of the text that are read before what is timed.
        text: Text to read, again from its start where it is too short.
        settings: Threads and rounds.

    Raises:
        CladaError: The artifact cannot be used, skips neurons, or was not measured at one of the shares.
    """
    model = find_model(path)
    sessions = {share: Session(model, threads=settings.threads, bytes=share) for share in shares}
    first = next(iter(sessions.values()))
    manifest = first.manifest
    assert manifest.inputs is not None  # a session is refused a share otherwise
    if first.artifact.in_place_model is None:
        raise CladaError(f"{path} has no graph with an in-place cache, which is what is timed")
    if not 0 < context <= first.context_length - TOKENS - 1:
        raise CladaError(f"the context is {context}; it must be from 1 to {first.context_length - TOKENS - 1}")
    # Not `encode`, which refuses what is longer than the model's context.
    ids = list(itertools.islice(itertools.cycle(first.tokenizer.encode(text).ids), context + 1 + TOKENS))
    # The same tokens each time: one that binds anew, and those that are timed.
    prompt, tokens = np.array([ids[:context]]), np.array([ids[context:]])
    # One loaded graph serves all of ours: a share is an input of it.
    for session in sessions.values():
        session.models.take("single", first.models.of("single"))
    loops = {share: OurLoop(session, prompt, tokens) for share, session in sessions.items()}

    precision, quantization = _precision(first), manifest.quantization
    blocks = None if quantization is None else Blocks(quantization.bits, quantization.block_size)
    with _dense_graph(first.artifact.in_place_model, blocks) as file:
        theirs = Session(model, threads=settings.threads)
        theirs.models.take("single", InPlaceModel(file, theirs.context_length, Execution(settings.threads)))
        reference = OurLoop(theirs, prompt, tokens)
        weights = sum(product.inputs * product.outputs for product in manifest.inputs.products)
        size = weights * _weight_bytes(first)
        name = dense(precision)
        # It reads everything, and counts nothing.
        run_densely = partial(always, reference.run, 1.0)
        contenders = [Contender(name, run_densely, size, repeats=TOKENS, prepare=reference.go_back)]
        for share, loop in loops.items():
            own = ours(None if share == 1 else share, precision)
            # The prompt is read densely by all.
            error = checked_error(own, loop.logits, reference.logits)
            contenders.append(Contender(own, loop.run, 0, size, share, error, repeats=TOKENS, prepare=loop.go_back))
        bandwidth = partial(read_bandwidth, settings.threads)
        samples = measure(contenders, settings.rounds, bandwidth, "decoding")
    return Table(manifest.model.family, "artifact", "decode", 1, context, rows(contenders, samples, name))
