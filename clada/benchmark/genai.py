"""Decode of a whole model by our session, and by onnxruntime-genai's generator from its own int4 model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clada.benchmark.contender import GENAI, Contender, checked_error, ours
from clada.benchmark.decode_loops import TOKENS, GenaiLoop, OurLoop, load_genai, load_ours, read_a_few
from clada.benchmark.floor import read_bandwidth
from clada.benchmark.footprint import Footprint, footprint
from clada.benchmark.genai_files import (
    FORMAT,
    FORMAT_NAME,
    build_genai,
    require_genai,
    write_artifact,
    write_checkpoint,
)
from clada.benchmark.own_process import in_own_process
from clada.benchmark.report import Table, rows
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import Shape, random_tokens
from clada.benchmark.timing import measure
from clada.contract.artifact import data_name

SHARE = 0.4
CONTEXTS = (64, 2048)
_LOADS = 3


@dataclass(frozen=True)
class Files:
    """Files of one model with random weights: the folder of onnxruntime-genai's, and our ONNX file."""

    genai: Path
    ours: Path


def _written(shape: Shape, folder: Path) -> Files:
    checkpoint = folder / "checkpoint"
    write_checkpoint(shape, checkpoint)
    build_genai(checkpoint, folder / "genai")
    return Files(folder / "genai", write_artifact(checkpoint, shape, SHARE, folder / "ours"))


@contextmanager
def written_models(shape: Shape) -> Iterator[Files]:
    """Make a model in both forms; the files are gone when the context ends."""
    require_genai()
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        # The sessions need the memory that this takes.
        yield in_own_process(_written, shape, Path(folder))


def _weights(shape: Shape) -> tuple[int, int]:
    """Number of weights that a token reads: those of neurons, and all others."""
    width = shape.hidden // shape.heads
    attention = shape.hidden * width * 2 * (shape.heads + shape.key_value_heads)
    return shape.layers * 3 * shape.neurons * shape.hidden, shape.layers * attention + shape.vocabulary * shape.hidden


def genai_contenders(shape: Shape, context: int, model: Any, session: Any) -> list[Contender]:
    """Both decode loops after a context.

    Raises:
        CladaError: They do not read the same model: their logits after the context have nothing in common.
    """
    prompt = random_tokens(shape, context, seed=2)
    theirs = GenaiLoop(model, prompt)
    own = OurLoop(session, prompt, random_tokens(shape, 8 * TOKENS, seed=3))
    name = ours(SHARE, FORMAT_NAME)
    neurons, others = _weights(shape)
    scale_bytes = 1 / FORMAT.block_size
    products, rows_of_ours = FORMAT.bits / 8 + 4 * scale_bytes, FORMAT.bits / 8 + 2 * scale_bytes
    width = shape.hidden // shape.heads
    always = others * products + 4 * 2 * shape.layers * shape.key_value_heads * width * context
    return [
        Contender(GENAI, theirs.run, always_bytes=always + neurons * products, repeats=TOKENS, prepare=theirs.go_back),
        Contender(
            name,
            own.run,
            always_bytes=always + neurons * rows_of_ours / 3,
            active_bytes=2 * neurons * rows_of_ours / 3,
            target=SHARE,
            error=checked_error(name, own.logits, theirs.logits),
            repeats=TOKENS,
            prepare=own.go_back,
        ),
    ]


def footprints(files: Files, shape: Shape, settings: BenchSettings) -> list[Footprint]:
    """Measure load time and memory of both contenders."""
    use, threads = partial(read_a_few, shape=shape), settings.threads
    of_genai = partial(load_genai, files.genai, threads), use, files.genai / data_name(files.ours)
    of_ours = partial(load_ours, files.ours, threads), use, files.ours.with_name(data_name(files.ours))
    return [
        footprint(shape.name, GENAI, *of_genai, _LOADS),
        footprint(shape.name, ours(SHARE, FORMAT_NAME), *of_ours, _LOADS),
    ]


def genai_tables(shape: Shape, settings: BenchSettings) -> Iterator[Table | list[Footprint]]:
    """Measure decode after each context, and the footprints."""
    with written_models(shape) as files:
        yield footprints(files, shape, settings)
        model, session = load_genai(files.genai, settings.threads), load_ours(files.ours, settings.threads)
        bandwidth = partial(read_bandwidth, settings.threads)
        for context in CONTEXTS:
            contenders = genai_contenders(shape, context, model, session)
            samples = measure(contenders, settings.rounds, bandwidth, f"{shape.name}, genai, context {context}")
            yield Table(shape.name, "genai", "decode", 1, context, rows(contenders, samples, GENAI))
