"""Preparation of a request: its prompts as token ids, and how each of its texts is generated."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clada.errors import CladaError
from clada.runtime.chat.messages import Message
from clada.runtime.chat.template import render_chat
from clada.runtime.generation import Choice, GenerationConfig
from clada.runtime.session import Session
from clada.server import limits
from clada.server.errors import RequestError
from clada.server.guides import grammar_of_regex, grammar_of_schema
from clada.server.limits import Limits
from clada.server.requests import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)

# As OpenAI has it where a request to continue a prompt says nothing.
_COMPLETION_TOKENS = 16
_SEEDS = 2**63
_OBJECT = {"type": "object"}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Prepared:
    """Request as texts to generate: `choices` of each prompt.

    Args:
        prompts: Token ids of each.
        choices: Number of texts of each prompt.
        choice: Method of choosing tokens; the seed is that of a prompt's first text, and the next ones have the next.
        config: When to stop.
        effort: Factor on the thresholds.
        logprobs: See Job.
        grammar: Grammar that each text follows; None where any may come.
    """

    prompts: list[list[int]]
    choices: int
    choice: Choice
    config: GenerationConfig
    effort: float
    logprobs: int | None
    grammar: str | None

    def choice_of(self, index: int) -> Choice:
        """Method of choosing the tokens of a prompt's text."""
        sampling = self.choice.sampling
        return replace(self.choice, sampling=replace(sampling, seed=(sampling.seed + index) % _SEEDS))


def number_of_texts(request: CompletionRequest | ChatRequest) -> int:
    """Number of texts that a request asks for."""
    return (1 if isinstance(request, ChatRequest) else len(_given(request))) * (request.n or 1)


def _given(request: CompletionRequest) -> list[str | list[int]]:
    """Prompts of a request, each as text or token ids."""
    prompt: Any = request.prompt
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def prepare(session: Session, bounds: Limits, request: CompletionRequest | ChatRequest) -> Prepared:
    """Check a request against the model and the limits, and encode it.

    Raises:
        CladaError: It asks for too much, or for what the model cannot do.
    """
    prompts = _prompts(session, bounds, request)
    logprobs = request.logprobs
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise RequestError("top_logprobs needs logprobs: set it to true", param="top_logprobs")
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is for a stream: set stream to true", param="stream_options")
    share = None if request.clada is None else request.clada.bytes
    try:
        effort = session.effort_for(share)
    except CladaError as error:
        raise RequestError(f"clada.bytes: {error}", param="clada.bytes") from error
    sampling = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
    choice = Choice(replace(session.default_sampling, seed=seed, **sampling), session.end_tokens)
    config = GenerationConfig(_max_tokens(request, bounds), request.stop or (), None, request.stop_token_ids or ())
    return Prepared(prompts, request.n or 1, choice, config, effort, logprobs, _grammar(request))


def _max_tokens(request: GenerationRequest, bounds: Limits) -> int | None:
    name, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if asked is not None:
            raise RequestError("max_tokens and max_completion_tokens are given: leave one of them out", param=name)
        name, asked = "max_completion_tokens", request.max_completion_tokens
    if asked is None:
        usual = _COMPLETION_TOKENS if isinstance(request, CompletionRequest) else bounds.output
        return usual if bounds.output is None or usual is None else min(usual, bounds.output)
    if bounds.output is not None and asked > bounds.output:
        raise RequestError(f"{name} is {asked}, and this server gives {bounds.output} at most", param=name)
    return asked


def _prompts(session: Session, bounds: Limits, request: CompletionRequest | ChatRequest) -> list[list[int]]:
    if isinstance(request, ChatRequest):
        text = render_chat(session.artifact, [_message(message) for message in request.messages])
        ids = session.tokenizer.encode(text, add_special_tokens=False).ids
        return [_checked(session, bounds, ids, "messages")]
    return [
        _checked(session, bounds, session.tokenizer.encode(each).ids if isinstance(each, str) else each, "prompt")
        for each in _given(request)
    ]


def _checked(session: Session, bounds: Limits, ids: Sequence[int], param: str) -> list[int]:
    most = session.context_length - 1
    if bounds.prompt is not None:
        most = min(most, bounds.prompt)
    if len(ids) > most:
        reason = f"the prompt has {len(ids)} tokens; this server reads {most} at most, and the model's context is "
        raise RequestError(f"{reason}{session.context_length}", param=param, code="context_length_exceeded")
    return session.checked(ids, "the prompt")


def _message(message: ChatMessage) -> Message:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    # What OpenAI calls by another name in newer models is known by this one to templates.
    role = "system" if message.role == "developer" else message.role
    found = {"role": role, "content": text, "name": message.name, "reasoning_content": message.reasoning_content}
    return {key: value for key, value in found.items() if value is not None}


def _grammar(request: GenerationRequest) -> str | None:
    form = request.response_format
    if isinstance(form, JsonObjectFormat | JsonSchemaFormat):
        if request.guided_regex is not None:
            raise RequestError("guided_regex and response_format are given: leave one out", param="guided_regex")
        grammar = grammar_of_schema(form.json_schema.schema_ if isinstance(form, JsonSchemaFormat) else _OBJECT)
        if len(grammar) > limits.LONGEST_SCHEMA:
            raise RequestError(
                f"the schema has more than {limits.LONGEST_SCHEMA:,} characters as JSON", param="response_format"
            )
        return grammar
    return None if request.guided_regex is None else grammar_of_regex(request.guided_regex)
