"""Answers, as OpenAI's clients read them and the served schema describes them."""

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class TokenTelemetry(BaseModel):
    """Extension: telemetry of one token.

    Args:
        id: Its id.
        load: The load signal, in [0, 1], with which it was read.
        read: The share of the weights' bytes that was read for it.
    """

    id: int
    load: float
    read: float


class Telemetry(BaseModel):
    """Extension: telemetry of the tokens of a choice, or of those of a chunk."""

    tokens: list[TokenTelemetry]


class RequestTelemetry(BaseModel):
    """Extension: telemetry of all that was generated for a request.

    Args:
        load: Mean load of a token; None where there is none.
        read: Mean share of the weights' bytes that a token read.
        bytes_per_token: Those bytes.
    """

    load: float | None
    read: float | None
    bytes_per_token: int | None


class PromptTokensDetails(BaseModel):
    """Tokens of a prompt that had been read before."""

    cached_tokens: int


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(BaseModel):
    """Log probabilities of tokens, and where in the text each begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """Continuation of a prompt, or a piece of one."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None
    clada: Telemetry


class Completion(BaseModel):
    """Continuations of prompts, or a chunk of a stream of them."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None
    clada: RequestTelemetry | None


class TopLogprob(BaseModel):
    """Log probability of a token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """Log probability of a token that was chosen, and of the likeliest."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """Message that answers."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """Answer in a conversation."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    clada: Telemetry


class ChatCompletion(BaseModel):
    """Answers in a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    clada: RequestTelemetry


class Delta(BaseModel):
    """Addition of a chunk to a message."""

    role: Literal["assistant"] | None = None
    content: str


class ChunkChoice(BaseModel):
    """Piece of an answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None
    clada: Telemetry


class ChatChunk(BaseModel):
    """Chunk of a stream of answers."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None
    clada: RequestTelemetry | None


class ModelCard(BaseModel):
    """Model that is served.

    Args:
        context_length: The most tokens of a text.
        least_bytes: The least share of the weights' bytes that a token can be asked to read; None where it cannot be.
        weight_bytes: Bytes of which `read` is a share.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    least_bytes: float | None
    weight_bytes: int
    can_chat: bool


class ListedModels(BaseModel):
    """Models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok", "stopping"]
