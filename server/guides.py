"""Guides of llguidance: an answer follows a regex or a JSON schema, which a stranger wrote."""

import json
import multiprocessing
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from clada.errors import CladaError
from clada.runtime.generation import GuideError
from clada.runtime.session import Session

# Of a grammar, and of each of its steps; a lexer state takes 2 kB. With the library's own, a step may take seconds.
_LIMITS: Mapping[str, Any] = {
    "max_items_in_row": 500,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
_LONGEST_REASON = 300


def grammar_of_regex(regex: str) -> str:
    """Grammar of the texts that match a regex as a whole."""
    return LLMatcher.grammar_from_regex(regex)


def grammar_of_schema(schema: Mapping[str, Any]) -> str:
    """Grammar of the JSON that follows a schema, written as models do: with spaces where they put them.

    Raises:
        CladaError: It is no JSON, or nested too deeply.
    """
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except (ValueError, RecursionError) as error:
        raise CladaError(f"the schema is no JSON: {error}") from error


class GrammarGuide:
    """Guide that follows a grammar; see `Guide`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Tokens bool[V] that may come next; those that end the text, once nothing else may.

        Raises:
            GuideError: The grammar takes too much to follow.
        """
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
        if self._matcher.is_error():
            raise GuideError(f"the grammar cannot be followed further: {_reason(self._matcher)}")
        return allowed

    def take(self, token: int) -> None:
        """Go on by a token."""
        self._matcher.consume_token(token)


def _reason(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:_LONGEST_REASON]


def _compiled(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compile a grammar.

    Raises:
        CladaError: It is none, is too large, or allows no text.
    """
    matcher = LLMatcher(tokenizer, grammar, limits=LLParserLimits(**_LIMITS), log_level=0)
    if not matcher.is_error():
        matcher.compute_logit_bias()  # fails where no token may come
    if matcher.is_error():
        raise CladaError(_reason(matcher))
    return matcher


def _tokenizer(content: str, vocabulary: int, end_tokens: list[int]) -> LLTokenizer:
    return LLTokenizer(content, n_vocab=vocabulary, eos_token=end_tokens)


def _check_grammars(connection: Any, *tokenizer: Any) -> None:
    """Answer each grammar with why it cannot be compiled, or an empty string; in a process of its own."""
    made = _tokenizer(*tokenizer)
    connection.send("")
    while True:
        try:
            grammar = connection.recv()
        except EOFError:
            return
        try:
            _compiled(made, grammar)
            connection.send("")
        except CladaError as error:
            connection.send(str(error) or "it cannot be compiled")


class Guides:
    """Maker of guides; for one thread.

    A grammar is compiled in another process first, which is ended where it takes too long: the library bounds most of
    what a grammar takes, and not all.

    Args:
        session: Session whose tokens are guided.
        seconds: Time to compile a grammar in.
    """

    def __init__(self, session: Session, seconds: float) -> None:
        self._seconds = seconds
        self._arguments = (
            session.tokenizer.to_str(),
            session.manifest.model.vocabulary_size,
            sorted(session.end_tokens),
        )
        self._made: LLTokenizer | None = None
        self._process: Any = None
        self._connection: Any = None

    def make(self, grammar: str, count: int) -> list[GrammarGuide]:
        """Make guides for a number of texts.

        Raises:
            CladaError: The grammar is none, takes too long to compile, or the model's tokenizer cannot be guided.
        """
        tokenizer = self._tokenizer()
        self._check(grammar)
        return [GrammarGuide(_compiled(tokenizer, grammar)) for _ in range(count)]

    def close(self) -> None:
        """End the other process."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = self._connection = None

    def _tokenizer(self) -> LLTokenizer:
        if not self._arguments[2]:
            raise CladaError("the model names no token that ends a text, which a guide needs")
        if self._made is None:
            try:
                self._made = _tokenizer(*self._arguments)
            except Exception as error:  # the library raises nothing more special
                raise CladaError(f"the model's tokenizer is of a kind that cannot be guided: {error}") from error
        return self._made

    def _check(self, grammar: str) -> None:
        if self._process is None:
            self._start()
        try:
            self._connection.send(grammar)
            came = self._connection.poll(self._seconds)
            reason = self._connection.recv() if came else f"it takes more than {self._seconds:g} s to compile"
        except (EOFError, OSError):
            came, reason = False, "it takes too much to compile"
        if not came:
            self.close()
        if reason:
            raise CladaError(reason)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_check_grammars, args=(other, *self._arguments), name="clada grammars", daemon=True
        )
        self._process.start()
        other.close()
        try:
            self._connection.recv()  # once it has started
        except EOFError:
            self.close()
            raise CladaError("grammars cannot be compiled here: the process for them ended") from None
