"""Answers, as OpenAI's own client reads them, against what a session of the model generates."""

import math
import threading
import time

import openai
import pytest

from clada.runtime import GenerationConfig, SamplingConfig
from clada.server.limits import Limits
from tests.server.conftest import running

PROMPT = "def read(self, name):"
MESSAGES = [{"role": "system", "content": "Answer in code."}, {"role": "user", "content": "How is a file read?"}]
GREEDY = {"temperature": 0}


def expected(server, prompt, tokens: int, seed: int = 0, temperature: float = 0.0, **options):
    sampling = SamplingConfig(temperature=temperature, seed=seed)
    return server.session.generate(prompt, GenerationConfig(tokens, sampling=sampling, **options))[0]


def test_the_model_is_listed(server):
    (model,) = server.client.models.list().data
    assert model.id == "tiny"
    assert server.client.models.retrieve("tiny").context_length == server.session.context_length
    assert model.can_chat
    assert 0 < model.least_bytes < 1
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here, but 'tiny'"):
        server.client.models.retrieve("other")


def test_a_prompt_is_continued(server):
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, **GREEDY)
    ours = expected(server, PROMPT, 12)
    (choice,) = answer.choices
    assert choice.text == ours.text
    assert choice.finish_reason == "length"
    assert [token["id"] for token in choice.clada["tokens"]] == ours.tokens
    assert [token["load"] for token in choice.clada["tokens"]] == pytest.approx([s.load for s in ours.stats], abs=1e-3)
    reads = [stats.read_fraction for stats in ours.stats]
    assert [token["read"] for token in choice.clada["tokens"]] == pytest.approx(reads, abs=1e-3)
    assert answer.clada["read"] == pytest.approx(sum(reads) / 12, abs=1e-3)
    model = server.client.models.retrieve("tiny")
    assert answer.clada["bytes_per_token"] == pytest.approx(sum(reads) / 12 * model.weight_bytes, rel=1e-3)
    prompt = len(server.session.encode(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 12)
    assert answer.usage.total_tokens == prompt + 12


def test_a_question_is_answered(server):
    answer = server.client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=10, **GREEDY)
    ours = expected(server, server.session.encode_chat(MESSAGES), 10)
    assert answer.choices[0].message.content == ours.text
    assert answer.choices[0].message.role == "assistant"
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in MESSAGES]
    again = server.client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=10, **GREEDY)
    assert again.choices[0].message.content == ours.text
    # An answer is sent back as the client has it.
    longer = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "Why?"}]
    assert server.client.chat.completions.create(model="tiny", messages=longer, max_tokens=2).choices


def test_a_stream_is_the_same_text(server):
    given = {"model": "tiny", "max_tokens": 12, "seed": 5, "temperature": 1.0, "stream": True}
    options = {"stream_options": {"include_usage": True}}
    chunks = list(server.client.completions.create(prompt=PROMPT, **given, **options))
    ours = expected(server, PROMPT, 12, 5, 1.0)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == ours.text
    tokens = [token for chunk in chunks for choice in chunk.choices for token in choice.clada["tokens"]]
    assert [token["id"] for token in tokens] == ours.tokens
    assert chunks[-1].usage.completion_tokens == len(ours.tokens)
    assert not chunks[-1].choices
    assert chunks[-1].clada["read"] > 0
    chunks = list(server.client.chat.completions.create(messages=MESSAGES, **given))
    ours = expected(server, server.session.encode_chat(MESSAGES), 12, 5, 1.0)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ours.text
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_each_choice_and_each_prompt_has_its_own_text(server):
    """The choices of a prompt have the seeds that follow; texts beside others are those that come alone."""
    prompts = [PROMPT, server.session.encode("class Reader:")]
    for prompt in prompts:
        answer = server.client.completions.create(
            model="tiny", prompt=prompt, n=3, seed=7, temperature=1.0, max_tokens=9
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts = [expected(server, prompt, 9, seed, 1.0).text for seed in (7, 8, 9)]
        assert [choice.text for choice in answer.choices] == texts
        assert len(set(texts)) == 3
    both = server.client.completions.create(model="tiny", prompt=[PROMPT, "class Reader:"], n=2, max_tokens=9, **GREEDY)
    assert [choice.text for choice in both.choices] == [
        expected(server, prompt, 9).text for prompt in (PROMPT, PROMPT, "class Reader:", "class Reader:")
    ]
    streamed = ["", ""]
    given = {"model": "tiny", "prompt": PROMPT, "seed": 7, "max_tokens": 9, "temperature": 1.0}
    for chunk in server.client.completions.create(**given, n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [expected(server, PROMPT, 9, seed, 1.0).text for seed in (7, 8)]


def test_without_a_seed_texts_differ(server):
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, n=4, max_tokens=12, temperature=1.5)
    again = server.client.completions.create(model="tiny", prompt=PROMPT, n=4, max_tokens=12, temperature=1.5)
    assert {choice.text for choice in answer.choices} != {choice.text for choice in again.choices}


def test_log_probabilities(server):
    told = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=6, logprobs=3, **GREEDY)
    found = told.choices[0].logprobs
    ours = expected(server, PROMPT, 6)
    assert found.token_logprobs == pytest.approx([-stats.surprisal for stats in ours.stats], abs=1e-3)
    assert "".join(found.tokens) == ours.text
    assert found.text_offset == [sum(map(len, found.tokens[:n])) for n in range(6)]
    for value, likeliest in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert max(likeliest.values()) == pytest.approx(value)
    chat = server.client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=4, temperature=1.0, seed=3
    )
    for token in chat.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 4
        assert token.logprob <= token.top_logprobs[0].logprob
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    without = server.client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    assert without.choices[0].logprobs is None


def test_a_text_ends_at_stop_strings_and_tokens(server):
    whole = expected(server, PROMPT, 20)
    stop = whole.text[5:8]
    given = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, **GREEDY}
    answer = server.client.completions.create(**given, stop=[stop, "never"])
    assert answer.choices[0].text == whole.text[: whole.text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    token = whole.tokens[4]
    answer = server.client.completions.create(**given, extra_body={"stop_token_ids": [token]})
    assert [told["id"] for told in answer.choices[0].clada["tokens"]] == whole.tokens[: whole.tokens.index(token)]
    assert answer.choices[0].finish_reason == "stop"


def test_sampling_options_reach_the_sampler(server):
    given = {"temperature": 1.3, "top_p": 0.9, "seed": 11}
    more = {"min_p": 0.05, "top_k": 20, "repetition_penalty": 1.2}
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=15, extra_body=more, **given)
    config = GenerationConfig(15, sampling=SamplingConfig(**given, **more))
    assert answer.choices[0].text == server.session.generate(PROMPT, config)[0].text


def test_a_request_says_how_many_bytes_are_read(server):
    """For itself alone."""
    read = {}
    for share in (1.0, 0.7):
        answer = server.client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=8, extra_body={"clada": {"bytes": share}}, **GREEDY
        )
        read[share] = answer.clada["read"]
    assert read[1.0] == 1
    assert read[0.7] < 0.9
    with pytest.raises(openai.BadRequestError, match=r"clada.bytes: bytes is 0.0001; the artifact was calibrated for"):
        server.client.completions.create(model="tiny", prompt=PROMPT, extra_body={"clada": {"bytes": 0.0001}})


REFUSED = [
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": -1.0}, "presence_penalty"),
    ({"logit_bias": {"5": 10}}, "logit_bias"),
    ({"temperature": 3.0}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"n": 100}, "n"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"seed": -1}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids"),
    ({"extra_body": {"beams": 3}}, "beams"),
    ({"extra_body": {"clada": {"share": 1}}}, "clada"),
    ({"extra_body": {"min_p": 2}}, "min_p"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
]
CHAT_REFUSED = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
]
COMPLETION_REFUSED = [
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["x"] * 17}, "prompt"),
]


@pytest.mark.fault("server", "fields that a request must not have, or not with that value", now="refused by name")
@pytest.mark.parametrize(("fields", "param"), [*REFUSED, *COMPLETION_REFUSED, *CHAT_REFUSED], ids=str)
def test_what_is_not_carried_out_is_refused_by_name(server, fields, param):
    chat = (fields, param) in CHAT_REFUSED
    create = server.client.chat.completions.create if chat else server.client.completions.create
    given = {"messages": MESSAGES} if chat else {"prompt": PROMPT}
    with pytest.raises(openai.BadRequestError) as refused:
        create(**{"model": "tiny", **given, **fields})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert param in str(refused.value)


def test_what_changes_nothing_is_accepted(server):
    plain = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, **GREEDY)
    given = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "best_of": 1, "echo": False, "n": 1}
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, user="me", **given, **GREEDY)
    assert answer.choices[0].text == plain.choices[0].text


def test_prompts_that_cannot_be_read_are_refused(server):
    with pytest.raises(openai.BadRequestError, match="this server reads 127 at most") as refused:
        server.client.completions.create(model="tiny", prompt=[5] * 128)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the prompt holds token 99999"):
        server.client.completions.create(model="tiny", prompt=[5, 99999])
    with pytest.raises(openai.NotFoundError) as unknown:
        server.client.completions.create(model="other", prompt=PROMPT)
    assert unknown.value.code == "model_not_found"


def test_limits_of_the_command_line(serving):
    small = serving(limits=Limits(body=2000, prompt=20, output=7))
    with pytest.raises(openai.BadRequestError, match="this server gives 7 at most"):
        small.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8)
    with pytest.raises(openai.BadRequestError) as refused:
        small.client.completions.create(model="tiny", prompt=[5] * 21)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as refused:
        small.client.completions.create(model="tiny", prompt="x" * 2000)
    assert refused.value.status_code == 413
    assert small.client.completions.create(model="tiny", prompt="x", **GREEDY).usage.completion_tokens <= 7


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


ENDLESS = {"model": "tiny", "prompt": [5], "max_tokens": 120, "temperature": 1.0, "seed": 1}


@pytest.mark.fault(
    "server", "more requests than there are places", now="429 with Retry-After, and no other is affected"
)
def test_a_full_server_says_so(serving, slow):
    full = serving(slots=1, queue=1)
    stream = full.client.completions.create(**ENDLESS, stream=True)
    waiting = threading.Thread(target=lambda: full.client.completions.create(**{**ENDLESS, "max_tokens": 1}))
    waiting.start()
    until(lambda: full.metric("clada_texts_waiting") == 1)
    with pytest.raises(openai.RateLimitError, match="the server is full: 2 of 2 texts") as refused:
        full.client.completions.create(model="tiny", prompt=PROMPT)
    assert float(refused.value.response.headers["Retry-After"]) > 0
    assert len(list(stream)) > 1
    waiting.join()
    assert full.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1).choices


@pytest.mark.fault("server", "a client that goes away", now="its text ends, and its slot is free")
def test_a_client_that_goes_away_frees_its_slot(serving, slow):
    server = serving(slots=2, queue=2)
    stream = server.client.completions.create(**ENDLESS, stream=True)
    next(iter(stream))
    assert server.metric("clada_slots_in_use") == 1
    stream.close()
    until(lambda: server.metric("clada_slots_in_use") == 0)
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.3).completions.create(**ENDLESS)
    until(lambda: server.metric("clada_slots_in_use") == 0)
    assert server.metric('clada_texts_total{finish="canceled"}') == 2
    assert server.metric('clada_tokens_total{kind="generated"}') < 120


def test_a_stopping_server_ends_its_streams(chat_artifact, slow):
    """Those that take too long with an error."""
    with running(chat_artifact, limits=Limits(stop_seconds=0.2)) as server:
        stream = iter(server.client.completions.create(**ENDLESS, stream=True))
        next(stream)
        pieces = []

        def read() -> None:
            try:
                pieces.extend(stream)
            except openai.APIError as error:
                pieces.append(error)

        reader = threading.Thread(target=read)
        reader.start()
    reader.join(30)
    assert isinstance(pieces[-1], openai.APIError)
    assert "the server is stopping" in str(pieces[-1])
