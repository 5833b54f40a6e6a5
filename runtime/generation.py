"""Generation loop: sample, decode, emit, until something ends it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True)
class Choice:
    """Method of choosing each token, and the tokens that end a text."""

    sampling: SamplingConfig
    end_tokens: frozenset[int]


class GuideError(CladaError):
    """Error of a guide that cannot be followed further."""


class Guide(Protocol):
    """Rule of which tokens a text may go on with, as a grammar has it."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Tokens bool[V] that may come next.

        Raises:
            GuideError: It cannot be told.
        """

    def take(self, token: int) -> None:
        """Go on by one of them."""


class Text:
    """Continuation of one prompt: chooses its tokens by logits, and says when it ends.

    Args:
        reader: Reader of its tokens.
        choice: Method of choosing them.
        prompt: Token ids that come before.
        config: When to stop.
        guide: Rule of which tokens may come; None where any may.
    """

    def __init__(
        self,
        reader: Reader,
        choice: Choice,
        prompt: Sequence[int],
        config: GenerationConfig,
        guide: Guide | None = None,
    ) -> None:
        self._reader, self._choice, self._config, self._guide = reader, choice, config, guide
        self._stream = TextStream(reader.tokenizer, prompt, config.stop)
        self._prompt, self._count = prompt, 0
        self._seen: npt.NDArray[np.bool_] | None = None
        self._source = np.random.default_rng(choice.sampling.seed)

    @property
    def length(self) -> int:
        """Number of its tokens that were read, the prompt's included."""
        return len(self._prompt) + self._count

    def choose(self, logits: npt.NDArray[Any]) -> int:
        """Draw the next token from logits T[V].

        Raises:
            CladaError: The logits are none to choose from, or the guide fails.
        """
        if self._guide is not None:
            logits = np.where(self._guide.allowed(), logits, logits.dtype.type(-np.inf))
        token = sample(logits, self._repeated(len(logits)), self._choice.sampling, self._source)
        if self._guide is not None:
            self._guide.take(token)
        if self._seen is not None:
            self._seen[token] = True
        return token

    def _repeated(self, vocabulary: int) -> npt.NDArray[np.int64]:
        """Ids of the tokens of the text so far, where the sampling minds them."""
        if self._choice.sampling.repetition_penalty == 1:
            return _NOTHING
        if self._seen is None:
            self._seen = np.zeros(vocabulary, np.bool_)
            self._seen[list(self._prompt)] = True
        return np.flatnonzero(self._seen)

    def end(self, token: int) -> Piece | None:
        """Return the last piece, if the token ends the text; it is not read then."""
        if token in self._choice.end_tokens:
            return Piece(token, self._stream.flush(), None, "end")
        return Piece(token, self._stream.flush(), None, "stop") if token in self._config.stop_tokens else None

    def add(self, token: int, stats: TokenStats, is_full: bool) -> Piece:
        """Add a token that was read; `is_full` says that no other can be."""
        self._count += 1
        text = self._stream.push(token)
        finish: Finish | None = None
        if self._stream.stopped:
            finish = "stop"
        elif self._count == self._config.max_new_tokens or self.length >= self._reader.context_length or is_full:
            finish, text = "length", text + self._stream.flush()
        return Piece(token, text, stats, finish)


_NOTHING = np.zeros(0, np.int64)


def _pieces(
    reader: Reader,
    choice: Choice,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    prefix: Prefix | None = None,
) -> Iterator[tuple[int, Piece]]:
    """Yield pieces of each prompt's continuation, with the prompt's index, until all have ended."""
    state = reader.prefill(prompts) if prefix is None else prefill_after(reader, prefix, *prompts)
    going_on = {row: Text(reader, choice, prompt, config) for row, prompt in enumerate(prompts)}
    while going_on:
        tokens = [0] * len(prompts)
        for row, text in list(going_on.items()):
            tokens[row] = text.choose(state.logits[row])
            if last := text.end(tokens[row]):
                del going_on[row]
                yield row, last
        if not going_on:
            return
        stats = reader.decode(state, tokens, [row in going_on for row in range(len(prompts))])
        is_full = reader.is_full(state)
        for row, text in list(going_on.items()):
            piece = text.add(tokens[row], stats[row], is_full)
            if piece.finish is not None:
                del going_on[row]
            yield row, piece


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
