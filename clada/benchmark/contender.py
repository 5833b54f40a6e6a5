"""Contender: one line of a table, with a callable to time and the bytes that it has to read."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from clada.errors import CladaError
from clada.ops.record import Array


def dense(precision: str) -> str:
    """Name of ONNX Runtime's dense graph."""
    return f"ORT dense {precision}"


# Every ratio is against this one.
REFERENCE = dense("float32")
TORCH = "torch dense float32"
GENAI = "genai dense int4"
# First words of contenders' names: of ours, and of GGUF files, whose own name follows.
OURS = "ours"
LLAMA_CPP = "llama.cpp"
# In the name of a contender that draws each token; of the same name without it, one that takes the likeliest.
SAMPLED = "sampled"
# How far from the reference the output may be; more is not another precision but another computation. Layers of random
# weights amplify the rounding of 4 bits, but outputs that have nothing in common are 1.4 apart.
FARTHEST = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1, "int8": 0.1, "int4": 1.2}
FARTHEST |= {f"{precision}-gptq": FARTHEST[precision] for precision in ("int8", "int4")}
# The same against what its own weights give, which leaves the rounding of what they are multiplied with.
FARTHEST_OF_OWN = {"float32": 1e-3, "bfloat16": 0.02, "int4": 0.06, "int4-block128": 0.06, "int8": 0.06}
# The same of two files of one model, each rounded in its own way, whatever their names.
FARTHEST_OF_ONE_MODEL: Mapping[str, float] = defaultdict(lambda: 1.2)


@dataclass(frozen=True)
class Contender:
    """One way to compute a result.

    Args:
        name: Unique in its table; the last word is the precision of its weights.
        run: Does it once and returns the share of neurons that were computed; None where it cannot run here.
        always_bytes: Bytes that a token reads whatever it activates.
        active_bytes: Additional bytes when all neurons are active.
        target: The share of neurons that was asked for; None for dense ones.
        error: Relative distance of its output from what it should be; None where nobody says what that is.
        missing: Why it cannot run here.
        repeats: Number of times that `run` computes what a time and the bytes refer to.
        prepare: Called before each time, which does not count it.
    """

    name: str
    run: Callable[[], float] | None = None
    always_bytes: float = 0
    active_bytes: float = 0
    target: float | None = None
    error: float | None = None
    missing: str = ""
    repeats: int = 1
    prepare: Callable[[], object] | None = None


def always(run: Callable[[], object], share: float) -> float:
    """Wrap a computation whose share is known beforehand into a `run` that returns it."""
    run()
    return share


def ours(fraction: float | None, precision: str, sampled: bool = False) -> str:
    """Name of one of our contenders; None is dense, and a sampled one also draws the next token."""
    share = "dense" if fraction is None else f"{100 * fraction:g}%"
    return f"{OURS} {share} {SAMPLED} {precision}" if sampled else f"{OURS} {share} {precision}"


def checked_error(name: str, output: Array, reference: Array, farthest: Mapping[str, float] = FARTHEST) -> float:
    """Relative error of a contender's output.

    Args:
        name: The contender.
        output: Output of the contender.
        reference: Expected output.
        farthest: Largest error allowed, by the last word of the name.

    Raises:
        CladaError: It is so large that something else was computed.
    """
    error = float(np.linalg.norm(output - reference) / np.linalg.norm(reference))
    # Written so that a NaN fails.
    if not error <= farthest[name.split()[-1]]:
        raise CladaError(f"{name} does not compute what it should: relative distance {error:.2g}")
    return error
