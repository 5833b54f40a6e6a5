"""Guided answers: they match, whatever the model would rather say, and no grammar makes the server hang."""

import json
import re
import time

import numpy as np
import openai
import pytest

from clada.errors import CladaError
from clada.runtime import Session
from clada.server.guides import Guides, grammar_of_regex, grammar_of_schema

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": [1, 2, 30]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Tell."}]


def test_a_text_matches_a_regex(server):
    regex = r"(yes|no), [0-9]{2}-[a-f]{1,3}"
    answer = server.client.completions.create(
        model="tiny", prompt="x", n=4, seed=1, temperature=1.0, max_tokens=60, extra_body={"guided_regex": regex}
    )
    for choice in answer.choices:
        assert re.fullmatch(regex, choice.text)
        assert choice.finish_reason == "stop"


def test_an_answer_follows_a_schema(server):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        answer = server.client.chat.completions.create(
            model="tiny", messages=MESSAGES, seed=seed, temperature=1.0, response_format=form
        )
        choice = answer.choices[0]
        if choice.finish_reason == "length":  # of spaces it may write as many as it likes
            continue
        found = json.loads(choice.message.content)
        assert found.keys() == {"name", "size"}
        assert len(found["name"]) <= 8
        assert found["size"] in (1, 2, 30)


def test_an_answer_is_a_json_object(server):
    answer = server.client.chat.completions.create(
        model="tiny", messages=MESSAGES, seed=3, temperature=1.0, response_format={"type": "json_object"}
    )
    text = answer.choices[0].message.content
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_text_beside_a_guided_one_is_free(server):
    plain = server.client.completions.create(model="tiny", prompt="x", temperature=0, max_tokens=8)
    form = {"type": "text"}
    same = server.client.completions.create(
        model="tiny", prompt="x", temperature=0, max_tokens=8, extra_body={"response_format": form}
    )
    assert same.choices[0].text == plain.choices[0].text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"guided_regex": "("}, "guided_regex: .*unclosed group"),
        ({"guided_regex": "(?=a)b"}, "guided_regex: .*look-around"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "leave one out"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_what_is_no_grammar_is_refused(server, fields, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        server.client.completions.create(model="tiny", prompt="x", extra_body=fields)


# By default the library takes seconds for the first of these, and lets the others grow.
HOSTILE = {
    "automata that multiply": {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}"} for n in range(1, 14)]},
    "a file to fetch": {"$ref": "http://127.0.0.1:9/schema"},
    "itself": {"$ref": "#"},
    "no type": {"type": "thing"},
}


@pytest.fixture
def guides(inputs_artifact):
    made = Guides(Session(inputs_artifact, threads=1), seconds=1.0)
    yield made
    made.close()


@pytest.mark.fault("server", "a schema that takes seconds to compile, or never ends", now="400 after a time")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_in_time(guides, name):
    guides.make(grammar_of_regex("a"), 1)
    begun = time.monotonic()
    with pytest.raises(CladaError):
        guides.make(grammar_of_schema(HOSTILE[name]), 1)
    assert time.monotonic() - begun < 3
    assert guides.make(grammar_of_regex("a"), 2)


@pytest.mark.fault("server", "a regex that is exponential", now="each step is bounded")
@pytest.mark.parametrize("regex", [r"((a{1,100}){1,100}){1,100}", r"(a?){40}a{40}", r"[ab]*a[ab]{60}c", r"(.*a){30}"])
def test_steps_of_hostile_regexes_take_little(guides, regex):
    (guide,) = guides.make(grammar_of_regex(regex), 1)
    source = np.random.default_rng(0)
    begun = time.monotonic()
    try:
        for _ in range(100):
            allowed = np.flatnonzero(guide.allowed())
            guide.take(int(source.choice(allowed)))
    except CladaError as error:
        assert "cannot be followed further" in str(error)
    assert time.monotonic() - begun < 3
