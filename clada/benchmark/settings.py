"""Settings chosen by the user, checked before anything is measured."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from clada.benchmark.precisions import PRECISIONS
from clada.errors import CladaError
from clada.runtime.threads import check_threads

PLOT_FORMATS = (".png", ".svg")


@dataclass(frozen=True)
class BenchSettings:
    """Settings of all measurements.

    Args:
        active: Shares of neurons that our sparse contenders keep.
        weights: Of PRECISIONS, those that are compared, beside the dense graph in float32.
        threads: Number of threads of every contender.
        rounds: Number of rounds for decode; prefill takes a fifth of them.
        prefill_tokens: Length of the prompt.
        context: Tokens in the cache when a whole model decodes.
    """

    active: tuple[float, ...] = (0.6, 0.4, 0.2)
    weights: tuple[str, ...] = PRECISIONS
    threads: int = 0
    rounds: int = 20
    prefill_tokens: int = 512
    context: int = 128

    @property
    def prefill_rounds(self) -> int:
        """Rounds of prefill, which takes seconds each and varies less."""
        return max(2, self.rounds // 5)


@dataclass(frozen=True)
class ArtifactSettings:
    """Choice of what is compared where artifacts are timed, and on what text.

    Args:
        paths: The artifacts, .onnx files or folders.
        text: Text that is read while time is taken.
        shares: Shares of their weights' bytes to read.
        contexts: Numbers of tokens before what is timed in decode.
        ggufs: GGUF files for llama.cpp.
        reference: The checkpoint that predictions are compared with; None where they are not.
        data: Held-out text to compare them on, a text file or a JSONL of `{"text": ...}`.
        sequences: Rows of tokens drawn from it.
        prompt_tokens: Tokens of a row that are read densely, at most.
        decode_tokens: Tokens after them that are read one by one, and whose successors are scored, at most.

    Raises:
        CladaError: There is a reference without text, or text without one.
    """

    paths: tuple[Path, ...]
    text: str
    shares: tuple[float, ...] = (1.0, 0.85, 0.7, 0.6, 0.5)
    contexts: tuple[int, ...] = (64,)
    ggufs: tuple[Path, ...] = ()
    reference: str | None = None
    data: Path | None = None
    sequences: int = 8
    prompt_tokens: int = 64
    decode_tokens: int = 128

    def __post_init__(self) -> None:
        if (self.reference is None) != (self.data is None):
            raise CladaError("--reference and --data are given together: the checkpoint, and text to compare it on")

    @property
    def row_tokens(self) -> int:
        """Number of tokens that a row holds in the cache."""
        return self.prompt_tokens + self.decode_tokens


def checked(settings: BenchSettings) -> BenchSettings:
    """Check the settings, and replace threads 0 by the number of cores.

    Raises:
        CladaError: A value makes no sense.
    """
    for fraction in settings.active:
        if not 0 < fraction <= 1:
            raise CladaError(f"an active fraction is {fraction}; it must lie in (0, 1]")
    if len(set(settings.active)) < len(settings.active):
        raise CladaError("an active fraction is given twice")
    if len(set(settings.weights)) < len(settings.weights):
        raise CladaError("a precision of weights is given twice")
    if settings.rounds < 1:
        raise CladaError(f"rounds is {settings.rounds}; at least 1 is needed")
    check_threads(settings.threads)
    threads = settings.threads or len(os.sched_getaffinity(0))
    return replace(settings, threads=threads)
