"""Arguments of chat templates, tools and their calls, against transformers' own apply_chat_template."""

# ruff: noqa: E501 # a template is written in few lines
import itertools
import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from clada.contract.artifact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME
from clada.errors import CladaError
from clada.runtime import Session
from clada.runtime.chat.template import render_chat
from clada.runtime.chat.template_arguments import parse_argument
from tests.support.manifests import vouch_for
from tests.support.plain_folder import PlainFolder

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# How the templates of families of models take arguments and tools, each with the arguments that it reads.
TEMPLATES = {
    "thinks unless told not to": (
        "{%- if tools %}\n    {{- '<|b|>system\\n' }}\n    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}\n"
        "    {{- '# Tools\\n<tools>' }}\n    {%- for tool in tools %}\n        {{- '\\n' }}{{- tool | tojson }}\n    {%- endfor %}\n"
        "    {{- '\\n</tools><|e|>\\n' }}\n{%- elif messages[0].role == 'system' %}{{- '<|b|>system\\n' + messages[0].content + '<|e|>\\n' }}{%- endif %}\n"
        "{%- for m in messages %}\n    {%- set content = m.content if m.content is string else '' %}\n"
        "    {%- if m.role == 'user' %}{{- '<|b|>user\\n' + content + '<|e|>\\n' }}\n    {%- elif m.role == 'assistant' %}\n"
        "        {{- '<|b|>assistant\\n' + content }}\n        {%- for call in m.tool_calls or [] %}\n"
        "            {%- if call.function %}{%- set call = call.function %}{%- endif %}\n"
        '            {{- \'\\n<call>{"name": "\' ~ call.name ~ \'", "arguments": \' }}\n'
        "            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}\n"
        "            {{- '}</call>' }}\n        {%- endfor %}\n        {{- '<|e|>\\n' }}\n    {%- elif m.role == 'tool' %}\n"
        "        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|b|>user' }}{%- endif %}\n"
        "        {{- '\\n<result>' + content + '</result>' }}\n"
        "        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|e|>\\n' }}{%- endif %}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|b|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}\n{%- endif %}",
        ["enable_thinking"],
    ),
    "sets what it is not given": (
        "{{- bos_token }}\n{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}\n"
        "{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}\n"
        "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
        "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}\n{{- 'Today: ' + date_string + '\\n' }}\n"
        "{%- if tools is not none and not tools_in_user_message %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}\n"
        "{%- for m in messages %}\n    {%- if m.role == 'user' and loop.last and tools_in_user_message and not tools is none %}\n"
        "        {%- for t in tools %}{{- 'Given ' + (t | tojson(indent=4)) + '\\n' }}{%- endfor %}\n    {%- endif %}\n"
        "    {%- if 'tool_calls' in m %}\n        {%- if not m.tool_calls | length == 1 %}{{- raise_exception('One call at a time!') }}{%- endif %}\n"
        "        {%- set call = m.tool_calls[0].function %}\n        {{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}' }}\n"
        "    {%- elif m.role == 'tool' or m.role == 'ipython' %}{{- '[ipython]' }}{%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}{%- else %}{{- m.content }}{%- endif %}\n"
        "    {%- else %}{{- '[' + m.role + ']' + (m.content or '') | trim }}{%- endif %}\n{%- endfor %}",
        ["custom_tools", "date_string", "tools_in_user_message"],
    ),
    "controls and documents": (
        "{%- macro listed(items, name) %}{% for item in items %}<{{ name }}>{{ item | tojson }}</{{ name }}>{% endfor %}{% endmacro %}"
        "{%- if not thinking is defined %}{% set thinking = false %}{% endif %}{%- set controls = controls | default({}) %}"
        "{{ listed(tools or [], 'tool') }}{{ listed(documents or [], 'doc') }}{% if thinking %}<think>{% endif %}"
        "{% if controls and controls.length %}<length={{ controls['length'] }}>{% endif %}"
        "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ eos_token }}{% endfor %}",
        ["controls", "documents", "thinking"],
    ),
    "asks for all that there is": (
        "{{ messages | length }}{% if tools %}{{ tools | map(attribute='function') | map(attribute='name') | join(',') }}{% endif %}"
        "{% set ns = namespace(mode=mode | default('plain')) %}{{ ns.mode }}{% for i in range(times or 0) %}.{% endfor %}",
        ["mode", "times"],
    ),
}
ARGUMENTS = {
    "enable_thinking": (True, False),
    "custom_tools": ([{"name": "f"}], []),
    "date_string": ("1 Dec 2026",),
    "tools_in_user_message": (False, True),
    "controls": ({"length": "long"}, {}),
    "documents": ([{"title": "T", "text": "é <&>"}],),
    "thinking": (True,),
    "mode": ("fast", None),
    "times": (3, 2.0),
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a <town>, now",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"town": "Köln", "days": [1, 2.5]}},
}
ASKED = {"role": "user", "content": "Rain in Köln?"}
CONVERSATIONS = (
    [ASKED],
    [{"role": "system", "content": "Be brief."}, ASKED],
    [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"rain": true}'},
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And then?"},
    ],
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: place for place, token in enumerate(SPECIAL.values())}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<s>")), **SPECIAL)


@pytest.fixture
def folder(tmp_path):
    """A function from a template to a model's folder that has it."""

    def write(template: str) -> PlainFolder:
        (tmp_path / TOKENIZER_CONFIG_NAME).write_text(json.dumps(SPECIAL))
        (tmp_path / CHAT_TEMPLATE_NAME).write_text(template, encoding="utf-8")
        return PlainFolder(tmp_path)

    return write


def combinations(names: list[str]):
    """Every combination of values of some arguments, each left out too."""
    for values in itertools.product(*[(..., *ARGUMENTS[name]) for name in names]):
        yield {name: value for name, value in zip(names, values, strict=True) if value is not ...}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_of_transformers_with_arguments_and_tools(tokenizer, folder, name):
    template, names = TEMPLATES[name]
    artifact, texts, compared = folder(template), set(), 0
    for arguments in combinations(names):
        for conversation, tools in itertools.product(CONVERSATIONS, (None, [], [WEATHER], [WEATHER, TIME])):
            given = {"tools": tools, **arguments}
            expected = refusal = None
            try:
                expected = tokenizer.apply_chat_template(
                    conversation, chat_template=template, tokenize=False, add_generation_prompt=True, **given
                )
            except Exception as error:
                refusal = str(error)
            if refusal is not None:
                with pytest.raises(CladaError, match="the model's chat template refused the conversation: "):
                    render_chat(artifact, conversation, tools=tools, template_args=arguments)
                continue
            assert render_chat(artifact, conversation, tools=tools, template_args=arguments) == expected
            texts.add(expected)
            compared += 1
    assert compared >= 12
    assert len(texts) >= 8


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_argument_that_the_template_does_not_read_is_refused(folder, name):
    template, names = TEMPLATES[name]
    with pytest.raises(CladaError) as refused:
        render_chat(folder(template), [ASKED], template_args={"enable_thinkin": False})
    message, _, read = str(refused.value).partition("; it reads ")
    assert message == "the model's chat template reads no argument 'enable_thinkin'"
    # jinja2 also names what a branch sets before it reads it.
    assert set(names) <= set(read.split(", ")) <= {*names, "call"}


def test_a_template_without_arguments_or_tools(folder):
    artifact = folder("{% for m in messages %}{% set mine = m.content %}{{ bos_token ~ mine }}{% endfor %}")
    for name in ("mine", "m", "loop"):
        with pytest.raises(CladaError, match=f"reads no argument '{name}'; it takes none"):
            render_chat(artifact, [ASKED], template_args={name: 1})
    with pytest.raises(CladaError, match="the model's chat template reads no tools: the model cannot be told"):
        render_chat(artifact, [ASKED], tools=[WEATHER])


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "range"]
)
def test_what_every_template_is_given_is_no_argument(folder, name):
    template = "{{ messages }}{{ tools }}{{ add_generation_prompt }}{{ bos_token }}{{ raise_exception }}{{ range }}"
    with pytest.raises(CladaError, match=f"a template argument is named '{name}', which is what every chat template"):
        render_chat(folder(template), [ASKED], template_args={name: "x"})


@pytest.mark.fault("text", "template arguments of any name", now="the template's, or refused in one line")
@pytest.mark.parametrize("name", ["template", "variables", "self", "context", "__class__", "environment"])
def test_arguments_of_any_name(folder, name):
    """Names that mean something in our code or jinja2's are the template's alone."""
    artifact = folder("{{ " + name + " }}")
    try:
        assert render_chat(artifact, [ASKED], template_args={name: "mine"}) == "mine"
    except CladaError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=false", False),
        ("x=3", 3),
        ("x=2.5", 2.5),
        ("x=null", None),
        ('x={"length": "long"}', {"length": "long"}),
        ('x="3"', "3"),
        ("x=1 Dec 2026", "1 Dec 2026"),
        ("x=False", "False"),
        ("x=", ""),
        ("x=a=b", "a=b"),
        ("x=NaN", "NaN"),
        ("x=" + "[" * 100_000, "[" * 100_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_values_are_json_or_text(text, value):
    assert parse_argument(text) == ("x", value)


@pytest.mark.parametrize("text", ["x", "=1", "", "a b=1", "enable-thinking=false"])
def test_what_is_no_argument_is_refused(text):
    with pytest.raises(CladaError, match="it must be NAME=VALUE, as in enable_thinking=false"):
        parse_argument(text)


def test_arguments_of_a_call_may_be_json_text(folder):
    """As clients of OpenAI's API send back what they were given."""
    artifact = folder(TEMPLATES["sets what it is not given"][0])
    as_text = {**CALL, "function": {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}}
    texts = [
        render_chat(artifact, [ASKED, {"role": "assistant", "tool_calls": [call]}], tools=[WEATHER])
        for call in (CALL, as_text)
    ]
    assert texts[0] == texts[1]
    assert '"parameters": {"town": "Köln", "days": [1, 2.5]}}' in texts[0]
    for empty in ({"name": "time"}, {"name": "time", "arguments": ""}):
        message = {"role": "assistant", "tool_calls": [{"type": "function", "function": empty}]}
        assert '"parameters": {}}' in render_chat(artifact, [ASKED, message])


def called(**function: object) -> list[object]:
    return [ASKED, {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]


DEEP: list[object] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.fault("text", "tools and calls of them that make no sense", now="refused in one line")
@pytest.mark.parametrize(
    ("messages", "tools", "line"),
    [
        ([ASKED], WEATHER, "tools is {.*}; it must be a list"),
        ([ASKED], ["weather"], r"tools\[0\] is 'weather'; it must be {\"type\": \"function\""),
        ([ASKED], [WEATHER["function"]], r"tools\[0\] is {.*}; it must be {\"type\": \"function\""),
        ([ASKED], [{"type": "retrieval", "function": {"name": "f"}}], r"tools\[0\] is {.*}; it must be"),
        ([ASKED], [{"type": "function", "function": {}}], r"the name of tools\[0\] is None; it must be a text"),
        ([ASKED], [WEATHER, TIME, WEATHER], "tools has two functions of the name 'weather'"),
        ([ASKED], [{"function": {"name": "f", "description": 5}}], "the description of the tool 'f' is 5; it must be"),
        ([ASKED], [{"function": {"name": "f", "parameters": []}}], "the parameters of the tool 'f' are no object"),
        ([{"role": "assistant", "tool_calls": "f()"}], None, r"tool_calls of message 0 is 'f\(\)'; it must be a list"),
        (
            [{"role": "assistant", "tool_calls": ["f"]}],
            None,
            "tool_calls of message 0 holds 'f'; a call needs a function",
        ),
        (called(arguments={}), None, "tool_calls of message 1 holds {.*}; a call needs a function with a name"),
        (called(name="f", arguments="{"), None, "tool_calls of message 1: the arguments of 'f' are no JSON: "),
        (called(name="f", arguments="[" * 100_000), None, "the arguments of 'f' are no JSON: "),
        (called(name="f", arguments="[1]"), None, r"the arguments of 'f' are \[1\]; they must be an object"),
        ([{"role": "user", "content": DEEP}], None, "what the chat template is to write is nested too deeply"),
        ([ASKED], [{"function": {"name": "f", "parameters": {"x": DEEP}}}], "is nested too deeply"),
    ],
)
def test_tools_and_calls_that_make_no_sense(folder, messages, tools, line):
    with pytest.raises(CladaError, match=line) as refused:
        render_chat(folder(TEMPLATES["thinks unless told not to"][0]), messages, tools=tools)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 500


def test_a_session_encodes_them(tiny_artifact, tmp_path, tokenizer):
    template, _ = TEMPLATES["thinks unless told not to"]
    for file in tiny_artifact.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CHAT_TEMPLATE_NAME).write_text(template, encoding="utf-8")
    vouch_for(tmp_path / CHAT_TEMPLATE_NAME)
    session = Session(tmp_path / tiny_artifact.name, threads=1)
    messages = [{"role": "user", "content": "x"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    expected = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, tools=tools, enable_thinking=False
    )
    ids = session.encode_chat(messages, tools=tools, template_args={"enable_thinking": False})
    assert ids == session.encode(expected, add_special_tokens=False)
    assert ids != session.encode_chat(messages)
    with pytest.raises(CladaError, match=r"the prompt holds half a character, '\\ud800', and is no text"):
        session.encode_chat([{"role": "user", "content": "a\ud800"}])
