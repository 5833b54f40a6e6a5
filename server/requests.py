"""Requests, as OpenAI's clients send them and the served schema describes them.

A field that would change the answer and is not carried out is refused by name, unless its value changes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from clada.server import limits

_Nothing = Annotated[float, Field(ge=0, le=0)]
_Stop = Annotated[str, Field(min_length=1, max_length=limits.LONGEST_STOP)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Prompt = Annotated[str, Field(min_length=1)]
# At the first that is wrong it is refused: an error for each would take hundreds of times what the request does.
_Tokens = Annotated[list[_Token], Field(min_length=1, fail_fast=True)]


def _few(given: Any) -> Any:
    """Refuse an object of very many fields before each of them is told of."""
    if isinstance(given, dict) and len(given) > limits.MOST_FIELDS:
        raise ValueError(f"it has {len(given)} fields, and {limits.MOST_FIELDS} are the most")
    return given


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few(cls, given: Any) -> Any:
        return _few(given)


class Steering(_Fields):
    """Extension: how a text is read.

    Args:
        bytes: The share of the weights' bytes that a token is to read; the server's where None.
    """

    bytes: Annotated[float, Field(gt=0, le=1)] | None = None


class StreamOptions(_Fields):
    """Options of a stream.

    Args:
        include_usage: Whether the last chunk counts the tokens.
    """

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(_Fields):
    """JSON schema that an answer is to follow."""

    name: Annotated[str, Field(max_length=256)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(_Fields):
    """An answer of any form."""

    type: Literal["text"]


class JsonObjectFormat(_Fields):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(_Fields):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class GenerationRequest(_Fields):
    """Fields that both endpoints have."""

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=limits.MOST_CHOICES)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=limits.MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Extensions, by the names that other servers have for them.
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[list[_Token], Field(max_length=limits.MOST_STOPS)] | None = None
    response_format: Format | None = None
    guided_regex: Annotated[str, Field(min_length=1, max_length=limits.LONGEST_REGEX)] | None = None
    clada: Steering | None = None
    # Not carried out, and refused where they ask for something.
    frequency_penalty: _Nothing | None = None
    presence_penalty: _Nothing | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_few), Field(max_length=0)] | None = None
    # Of who asks and for whom: they change no answer.
    user: str | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(GenerationRequest):
    """Request to continue prompts."""

    prompt: (
        _Prompt
        | Annotated[list[_Prompt], Field(min_length=1, max_length=limits.MOST_PROMPTS)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, max_length=limits.MOST_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=limits.MOST_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class TextPart(_Fields):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Fields):
    """Message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=limits.MOST_MESSAGES)]
    name: str | None = None
    reasoning_content: str | None = None
    # What an answer's message has besides, as a client sends it back.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class ChatRequest(GenerationRequest):
    """Request to answer in a conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=limits.MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MOST_LOGPROBS)] | None = None
    store: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
