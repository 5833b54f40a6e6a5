"""Generation loop: sample, decode, emit, until something ends it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clada.errors import CladaError
from clada.runtime.detokenize import TextStream
from clada.runtime.prefix import Prefix, prefill_after
from clada.runtime.sampling import SamplingConfig, sample
from clada.runtime.steps import Reader
from clada.runtime.telemetry import TokenStats

# How a text ended: the model ended it, a stop string or token did, or there was no room for more.
Finish = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class GenerationConfig:
    """Options of a generation: when to stop, and how to choose tokens.

    Args:
        max_new_tokens: The most tokens to generate; None for as many as the model's context holds.
        stop: Strings that end the text; they are not part of it. One string alone is one stop string.
        sampling: Settings by which each token is chosen; None for the model's own, `Session.default_sampling`.
        stop_tokens: Ids of tokens that end the text, beside those by which the model ends it; they are not part of it.

    Raises:
        CladaError: A value is not of its kind, or is none that makes sense.
    """

    max_new_tokens: int | None = None
    stop: Sequence[str] = ()
    sampling: SamplingConfig | None = None
    stop_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _check_is_integer("max_new_tokens", self.max_new_tokens)
            if self.max_new_tokens < 1:
                raise CladaError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not isinstance(self.sampling, SamplingConfig | None):
            raise CladaError(f"sampling is {self.sampling!r}; it must be a SamplingConfig")
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_tokens", _tokens(self.stop_tokens))


def _strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise CladaError(f"stop holds {string!r}; it must hold strings that are not empty")
    return strings


def _tokens(stop_tokens: Any) -> tuple[int, ...]:
    tokens = tuple(stop_tokens) if isinstance(stop_tokens, Iterable) else (stop_tokens,)
    for token in tokens:
        _check_is_integer("a stop token", token)
        if token < 0:
            raise CladaError(f"a stop token is {token}; it must be 0 or more")
    return tuple(int(token) for token in tokens)


def _check_is_integer(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise CladaError(f"{name} is {value!r}; it must be an integer")


@dataclass(frozen=True)
class Piece:
    """One generated token.

    Args:
        token: Its id.
        text: The text it completes; may be empty, or hold what earlier tokens left open.
        stats: Its telemetry; None for the token that ends the text.
        finish: None while the text goes on; else "end" (the model ended it), "stop" (a stop string) or "length".
    """

    token: int
    text: str
    stats: TokenStats | None
    finish: Finish | None


@dataclass
class Completion:
    """Complete generated text; fields as of Piece, over all of its tokens but the one that ends it."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    stats: list[TokenStats] = field(default_factory=list)
    finish: Finish = "length"


def _alive_rows(alive: Sequence[bool]) -> list[int]:
    return [row for row, going_on in enumerate(alive) if going_on]


@dataclass(frozen=True)
class Choice:
    """Method of choosing each token, and the tokens that end a text."""

    sampling: SamplingConfig
    end_tokens: frozenset[int]


def _pieces(
    reader: Reader,
    choice: Choice,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    prefix: Prefix | None = None,
) -> Iterator[tuple[int, Piece]]:
    """Yield pieces of each prompt's continuation, with the prompt's index, until all have ended."""
    sampling = choice.sampling
    state = reader.prefill(prompts) if prefix is None else prefill_after(reader, prefix, *prompts)
    texts = [TextStream(reader.tokenizer, prompt, config.stop) for prompt in prompts]
    length = [len(prompt) for prompt in prompts]
    seen = _Seen(prompts, state.logits.shape[1]) if sampling.repetition_penalty != 1 else None
    sources = [np.random.default_rng(sampling.seed) for _ in prompts]
    alive = [True] * len(prompts)
    for count in itertools.count(1):
        tokens = [0] * len(prompts)
        for row in _alive_rows(alive):
            repeated = _NOTHING if seen is None else seen.of(row)
            tokens[row] = token = sample(state.logits[row], repeated, sampling, sources[row])
            length[row] += 1
            if seen is not None:
                seen.add(row, token)
            if token in choice.end_tokens or token in config.stop_tokens:
                alive[row] = False
                ended: Finish = "end" if token in choice.end_tokens else "stop"
                yield row, Piece(token, texts[row].flush(), None, ended)
        if not any(alive):
            return
        stats = reader.decode(state, tokens, alive)
        for row in _alive_rows(alive):
            text = texts[row].push(tokens[row])
            finish: Finish | None = None
            if texts[row].stopped:
                finish = "stop"
            elif count == config.max_new_tokens or length[row] >= reader.context_length or reader.is_full(state):
                finish, text = "length", text + texts[row].flush()
            alive[row] = finish is None
            yield row, Piece(tokens[row], text, stats[row], finish)
        if not any(alive):
            return


_NOTHING = np.zeros(0, np.int64)


class _Seen:
    """Tokens that each text holds."""

    def __init__(self, prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
        self._holds = np.zeros((len(prompts), vocabulary), np.bool_)
        for holds, prompt in zip(self._holds, prompts, strict=True):
            holds[list(prompt)] = True

    def of(self, row: int) -> npt.NDArray[np.int64]:
        """Ids of a text's tokens."""
        return np.flatnonzero(self._holds[row])

    def add(self, row: int, token: int) -> None:
        """Add one token."""
        self._holds[row, token] = True


def stream(
    reader: Reader, choice: Choice, prompt: Sequence[int], config: GenerationConfig, prefix: Prefix | None = None
) -> Iterator[Piece]:
    """Continue one prompt, token by token; after a prefix, only what differs from it is read."""
    return (piece for _, piece in _pieces(reader, choice, [prompt], config, prefix))


def generate(
    reader: Reader, choice: Choice, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> list[Completion]:
    """Continue prompts as one batch."""
    completions = [Completion() for _ in prompts]
    for row, piece in _pieces(reader, choice, prompts, config):
        completion = completions[row]
        completion.text += piece.text
        if piece.stats is not None:
            completion.tokens.append(piece.token)
            completion.stats.append(piece.stats)
        if piece.finish is not None:
            completion.finish = piece.finish
    return completions
