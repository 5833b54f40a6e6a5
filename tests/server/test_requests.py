"""Requests that are refused: at a cost that is bounded by what they take themselves."""

import pytest
from pydantic import ValidationError

from clada.server.requests import ChatRequest, CompletionRequest

MANY = 50_000
NAMES = {f"n{number}": 1 for number in range(MANY)}
COMPLETION, CHAT = {"model": "m", "prompt": "x"}, {"model": "m", "messages": [{"role": "user", "content": "x"}]}
HOSTILE = {
    "no tokens": (CompletionRequest, {**COMPLETION, "prompt": [1.5] * MANY}),
    "lists of no tokens": (CompletionRequest, {**COMPLETION, "prompt": [[1.5]] * MANY}),
    "a list of no tokens": (CompletionRequest, {**COMPLETION, "prompt": [[1.5] * MANY]}),
    "fields": (CompletionRequest, COMPLETION | NAMES),
    "metadata": (CompletionRequest, {**COMPLETION, "metadata": NAMES}),
    "biases": (CompletionRequest, {**COMPLETION, "logit_bias": NAMES}),
    "stop strings": (CompletionRequest, {**COMPLETION, "stop": [1] * MANY}),
    "stop tokens": (CompletionRequest, {**COMPLETION, "stop_token_ids": ["x"] * MANY}),
    "messages": (ChatRequest, {**CHAT, "messages": [{"role": "x"}] * MANY}),
    "parts": (ChatRequest, {**CHAT, "messages": [{"role": "user", "content": [{"type": "x"}] * MANY}]}),
    "fields of a message": (ChatRequest, {**CHAT, "messages": [{"role": "user", "content": "x", **NAMES}]}),
    "tools": (ChatRequest, {**CHAT, "tools": [1] * MANY}),
}


@pytest.mark.fault("server", "a request that is wrong in very many places", now="told of a few of them")
@pytest.mark.parametrize("name", HOSTILE)
def test_few_errors_are_made_of_one_request(name):
    kind, body = HOSTILE[name]
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() < 100


def test_usual_requests_are_read():
    assert CompletionRequest.model_validate({**COMPLETION, "prompt": [[1, 2], [3]]}).prompt == [[1, 2], [3]]
    assert ChatRequest.model_validate({**CHAT, "metadata": {"a": "b"}}).metadata == {"a": "b"}
