"""Forms of answers: what was generated as completions or as messages, whole or in chunks."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from tokenizers import Tokenizer

from clada.runtime.detokenize import REPLACEMENT
from clada.server import answers
from clada.server.jobs import Event, Generated, PromptRead
from clada.server.logprobs import Logprobs

# As OpenAI writes a log probability that JSON cannot hold.
_NEVER = -9999.0
_DIGITS = 4


@dataclass
class Tally:
    """Sums over all texts of a request.

    Args:
        prompt_tokens: Tokens of its prompts.
        choices: Number of texts of each prompt.
        weight_bytes: Bytes of which each token reads a share.
    """

    prompt_tokens: int
    choices: int
    weight_bytes: int
    cached_tokens: int = 0
    tokens: int = 0
    load: float = 0.0
    read: float = 0.0

    def add(self, index: int, event: Event) -> None:
        """Count an event of a text: a token, if it was read, or a prompt, once for all of its texts."""
        if isinstance(event, PromptRead) and index % self.choices == 0:
            self.cached_tokens += event.reused
        if isinstance(event, Generated) and event.piece.stats is not None:
            self.tokens += 1
            self.load += event.piece.stats.load
            self.read += event.piece.stats.read_fraction

    def usage(self) -> answers.Usage:
        """Numbers of tokens."""
        return answers.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            total_tokens=self.prompt_tokens + self.tokens,
            prompt_tokens_details=answers.PromptTokensDetails(cached_tokens=self.cached_tokens),
        )

    def telemetry(self) -> answers.RequestTelemetry:
        """Means over the tokens."""
        if not self.tokens:
            return answers.RequestTelemetry(load=None, read=None, bytes_per_token=None)
        read = self.read / self.tokens
        return answers.RequestTelemetry(
            load=round(self.load / self.tokens, _DIGITS),
            read=round(read, _DIGITS),
            bytes_per_token=round(read * self.weight_bytes),
        )


class Form(ABC):
    """Form of one request's answers.

    Args:
        model: Name of the model.
        tokenizer: Tells the texts of tokens.
    """

    kind = ""

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._id, self._created = f"{self.kind}-{uuid.uuid4().hex}", int(time.time())

    @abstractmethod
    def whole(self, texts: Sequence[Sequence[Generated]], tally: Tally) -> BaseModel:
        """Answer with all that was generated."""

    @abstractmethod
    def chunk(self, index: int, event: Generated) -> BaseModel:
        """Chunk with one token of a text."""

    @abstractmethod
    def last(self, tally: Tally) -> BaseModel:
        """Chunk that counts the tokens."""

    def first(self, _index: int) -> BaseModel | None:
        """Chunk by which a text begins, if there is one."""
        return None

    def _text_of(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False))


def _finish(events: Sequence[Generated]) -> answers.FinishReason | None:
    finish = events[-1].piece.finish
    return finish if finish is None or finish == "length" else "stop"


def _telemetry(events: Sequence[Generated]) -> answers.Telemetry:
    return answers.Telemetry(
        tokens=[
            answers.TokenTelemetry(
                id=event.piece.token,
                load=round(event.piece.stats.load, _DIGITS),
                read=round(event.piece.stats.read_fraction, _DIGITS),
            )
            for event in events
            if event.piece.stats is not None
        ]
    )


def _text(events: Sequence[Generated]) -> str:
    return "".join(event.piece.text for event in events)


def _told(events: Sequence[Generated]) -> list[tuple[int, Logprobs]]:
    """Tokens with log probabilities; not the one that ends a text, which is no part of it."""
    return [
        (event.piece.token, event.logprobs)
        for event in events
        if event.logprobs is not None and event.piece.stats is not None
    ]


class CompletionForm(Form):
    """Form of continuations of prompts."""

    kind = "cmpl"

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        super().__init__(model, tokenizer)
        self._length: dict[int, int] = {}

    def whole(self, texts: Sequence[Sequence[Generated]], tally: Tally) -> BaseModel:
        """See Form."""
        choices = [self._choice(index, events) for index, events in enumerate(texts)]
        return self._answer(choices, tally.usage(), tally.telemetry())

    def chunk(self, index: int, event: Generated) -> BaseModel:
        """See Form."""
        return self._answer([self._choice(index, [event])], None, None)

    def last(self, tally: Tally) -> BaseModel:
        """See Form."""
        return self._answer([], tally.usage(), tally.telemetry())

    def _answer(
        self,
        choices: list[answers.CompletionChoice],
        usage: answers.Usage | None,
        telemetry: answers.RequestTelemetry | None,
    ) -> answers.Completion:
        return answers.Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            clada=telemetry,
        )

    def _choice(self, index: int, events: Sequence[Generated]) -> answers.CompletionChoice:
        return answers.CompletionChoice(
            index=index,
            text=_text(events),
            finish_reason=_finish(events),
            logprobs=self._logprobs(index, events),
            clada=_telemetry(events),
        )

    def _logprobs(self, index: int, events: Sequence[Generated]) -> answers.CompletionLogprobs | None:
        told = _told(events)
        if not told:
            return None
        texts, offsets = [self._text_of(token) for token, _ in told], []
        for text in texts:
            offsets.append(self._length.get(index, 0))
            self._length[index] = offsets[-1] + len(text)
        likeliest = [
            {self._text_of(token): max(value, _NEVER) for token, value in reversed(found.likeliest)}
            for _, found in told
        ]
        return answers.CompletionLogprobs(
            tokens=texts,
            token_logprobs=[max(found.chosen, _NEVER) for _, found in told],
            top_logprobs=likeliest if any(likeliest) else None,
            text_offset=offsets,
        )


class ChatForm(Form):
    """Form of answers in a conversation."""

    kind = "chatcmpl"

    def whole(self, texts: Sequence[Sequence[Generated]], tally: Tally) -> BaseModel:
        """See Form."""
        return answers.ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[
                answers.ChatChoice(
                    index=index,
                    message=answers.AnswerMessage(role="assistant", content=_text(events)),
                    finish_reason=_finish(events) or "length",
                    logprobs=self._logprobs(events),
                    clada=_telemetry(events),
                )
                for index, events in enumerate(texts)
            ],
            usage=tally.usage(),
            clada=tally.telemetry(),
        )

    def first(self, index: int) -> BaseModel | None:
        """See Form."""
        delta = answers.Delta(role="assistant", content="")
        return self._chunk([self._choice(index, delta, [])], None, None)

    def chunk(self, index: int, event: Generated) -> BaseModel:
        """See Form."""
        return self._chunk([self._choice(index, answers.Delta(content=event.piece.text), [event])], None, None)

    def last(self, tally: Tally) -> BaseModel:
        """See Form."""
        return self._chunk([], tally.usage(), tally.telemetry())

    def _chunk(
        self,
        choices: list[answers.ChunkChoice],
        usage: answers.Usage | None,
        telemetry: answers.RequestTelemetry | None,
    ) -> answers.ChatChunk:
        return answers.ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            clada=telemetry,
        )

    def _choice(self, index: int, delta: answers.Delta, events: Sequence[Generated]) -> answers.ChunkChoice:
        return answers.ChunkChoice(
            index=index,
            delta=delta,
            finish_reason=_finish(events) if events else None,
            logprobs=self._logprobs(events),
            clada=_telemetry(events),
        )

    def _logprobs(self, events: Sequence[Generated]) -> answers.ChatLogprobs | None:
        told = _told(events)
        if not told:
            return None
        return answers.ChatLogprobs(
            content=[
                answers.TokenLogprob(
                    **self._top(token, found.chosen).model_dump(),
                    top_logprobs=[self._top(other, value) for other, value in found.likeliest],
                )
                for token, found in told
            ]
        )

    def _top(self, token: int, value: float) -> answers.TopLogprob:
        text = self._text_of(token)
        # Of a part of a character the bytes are not known here.
        known = None if REPLACEMENT in text else list(text.encode())
        return answers.TopLogprob(token=text, logprob=max(value, _NEVER), bytes=known)
