"""Subject of an evaluation: a model that reads tokens one by one and reports its predictions and its cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clada.errors import CladaError

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Reading:
    """Outputs of reading T tokens in decode.

    Args:
        logits: f32[T, V], after each token: they predict the next one.
        load: f32[T], the load signal of each token, in [0, 1].
        surprisal: f32[T], -log p of each token, in nats.
        entropy: f32[T], of the distribution it was drawn from, in nats.
        read_fraction: f32[T], share of those bytes, see SubjectInfo, that were read for it.
        active: i32[T, L], neurons that were computed in each layer.
        pool: i32[T, L], neurons that each layer was allowed.
    """

    logits: Floats
    load: Floats
    surprisal: Floats
    entropy: Floats
    read_fraction: Floats
    active: Integers
    pool: Integers


@dataclass(frozen=True)
class SubjectInfo:
    """Description of a subject in a result.

    Args:
        name: Name in tables.
        family: The model's type, as its configuration names it.
        neurons: Number of neurons of each layer; of inputs of each product where inputs are skipped.
        parameters: Number of parameters of the whole model.
        ffn_bytes: Size of all feed-forward weight matrices; of all that a token reads where inputs are skipped.
        context_length: The most tokens it reads.
        vocabulary: Size of the vocabulary, as in its logits.
        policy: Policy that made it sparse, as in a manifest.
        calibration: Its calibration, as in a manifest; empty where there was none.
        quantization: Format of its weights, as in a manifest; None where they are not quantized.
        model: Name of the checkpoint; empty where it is not known.
    """

    name: str
    family: str
    neurons: tuple[int, ...]
    parameters: int
    ffn_bytes: int
    context_length: int
    vocabulary: int
    policy: dict[str, Any]
    calibration: dict[str, Any]
    quantization: dict[str, Any] | None = None
    model: str = ""


def with_weights(policy: str, quantization: Mapping[str, Any] | None) -> str:
    """Name of a policy with its weights' format in tables: "clada", or "clada, int4"."""
    return policy if quantization is None else f"{policy}, int{quantization['bits']}"


class Subject(Protocol):
    """Subject of an evaluation; a subclass inherits `read_endings`, which is built on `read`.

    Args:
        info: Description of it in a result.
    """

    info: SubjectInfo

    def read(self, row: Sequence[int], prompt_tokens: int) -> Reading:
        """Read a row: the prompt densely, and every token after it but the last as in decode, one by one.

        Args:
            row: Token ids x_0 ... x_N-1.
            prompt_tokens: P, how many of them are the prompt.

        Returns:
            The reading of x_P ... x_N-2, T = N-1-P tokens; their logits predict x_P+1 ... x_N-1.
        """
        ...

    def read_endings(
        self, context: Sequence[int], prompt_tokens: int, endings: Sequence[Sequence[int]]
    ) -> list[Floats]:
        """Read a context, and from its end each of several endings.

        Args:
            context: Token ids, more than `prompt_tokens`: its end is read in decode.
            prompt_tokens: Number of them that are read densely.
            endings: Token ids of each.

        Returns:
            f32[E, V] for each ending of E tokens: logits that predict its tokens, all of them made in decode.
        """
        return [self.read([*context, *ending], prompt_tokens).logits[-len(ending) :] for ending in endings]


def check_reading(reading: Reading, tokens: int, info: SubjectInfo) -> None:
    """Raise CladaError where a reading has another number of tokens than were read, or logits that are not finite."""
    expected = (tokens, info.vocabulary)
    if reading.logits.shape != expected:
        raise CladaError(f"{info.name} gave logits {list(reading.logits.shape)}, expected {list(expected)}")
    if not np.isfinite(reading.logits).all():
        raise CladaError(f"{info.name} gave logits that are not finite")
