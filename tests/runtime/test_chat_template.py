"""Chat templates against transformers' own apply_chat_template, and templates that mean harm."""

# ruff: noqa: E501 # a template is written in few lines
import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from clada.contract.artifact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME
from clada.errors import CladaError
from clada.runtime.chat.template import render, render_chat, special_tokens
from tests.support.plain_folder import PlainFolder

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<?>", "pad_token": "<pad>"}

# What the templates of real models are built from, each in the shortest form that uses it.
TEMPLATES = {
    "one turn a line": (
        "{% for m in messages %}{{ '<|begin|>' + m['role'] + '\\n' + m['content'] + '<|done|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|begin|>assistant\\n' }}{% endif %}"
    ),
    "a default system message": (
        "{%- if messages[0].role == 'system' %}\n    {{- messages[0].content }}\n{%- else %}\n"
        "    {{- 'Be of help.' }}\n{%- endif %}\n{%- for m in messages if m.role != 'system' %}\n"
        "    {{- '[' ~ m.role ~ ']' ~ m.content }}\n{%- endfor %}\n"
    ),
    "instructions in brackets": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}{% set text = '<<S>>\\n' + system + '\\n<</S>>\\n' + m['content'] %}"
        "{% else %}{% set text = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[I] ' + text.strip() + ' [/I]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "headers": (
        "{{- bos_token }}\n{%- set ns = namespace(first=true, count=0) %}\n{%- for m in messages %}\n"
        "{%- set text = '<|h|>' + m['role'] + '<|/h|>\\n\\n' + m['content'] | trim + '<|eot|>' %}\n"
        "{%- if ns.first %}{% set ns.first = false %}{% set text = '!' + text %}{% endif %}{% set ns.count = ns.count + 1 %}"
        "{{- text }}\n{%- endfor %}\n{{- ns.count }}{% if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{% endif %}"
    ),
    "two roles alone": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% if (m['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
        "{{ '<turn>' + role + '\\n' + m['content'] | trim + '</turn>\\n' }}{% endfor %}"
    ),
    "tools": (
        "{%- if tools %}\n{{- '# Tools\\n' }}\n{%- for tool in tools %}\n{{- tool | tojson }}\n{{- '\\n' }}{%- endfor %}\n"
        "{%- endif %}\n{%- if tools is none %}no tools{% endif %}{% if tools is not defined %}undefined{% endif %}"
        "{%- for m in messages %}\n{{- m.role }}:{% if m.content is defined and m.content is not none %}{{ m.content }}{% endif %}\n"
        "{%- if m.tool_calls is defined and m.tool_calls %}{%- for call in m.tool_calls %}{%- if call.function %}"
        "{%- set call = call.function %}{%- endif %}<call>{{ call.name }}({{ call.arguments | tojson(indent=2) }})</call>"
        "{%- endfor %}{%- endif %}\n{%- endfor %}"
    ),
    "JSON with options": (
        "{{ messages | tojson }}|{{ messages | tojson(indent=4, sort_keys=true) }}|"
        "{{ messages | tojson(ensure_ascii=true) }}|{{ messages | tojson(separators=(',', ':')) }}"
    ),
    "documents": (
        "{% if documents %}{% for d in documents %}[{{ loop.index }}] {{ d.title }}: {{ d['text'] }}\n{% endfor %}"
        "{% else %}none: {{ documents is none }}{% endif %}{{ messages[-1].content }}"
    ),
    "today": "{{ strftime_now('%Y') }}{% if strftime_now is defined %}-{{ strftime_now('%Y-%m') | length }}{% endif %}",
    "break and continue": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "generation": (
        "{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{%- generation -%} {{ m.role }} {%- endgeneration -%}{% endif %}{% endfor %}"
    ),
    "macros": (
        "{%- macro part(role, text='(nothing)', last=false) -%}\n<{{ role }}>{{ text }}{% if last %}.{% endif %}\n"
        "{%- endmacro -%}\n{% macro each(list) %}{% for x in list %}{{ caller(x) }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ part(m.role, m.content, last=loop.last) }}{{ part(m.role) }}{% endfor %}"
        "{% call(m) each(messages) %}/{{ m.role }}{% endcall %}"
    ),
    "blocks trimmed": (
        "   {% for m in messages %}\n   {{ m.role }}\n\n   {%- if loop.last %}  \n\t{% set x = 1 %}\n last {{ x }}\n"
        "   {% endif %}\n   {# a remark #}\n{% endfor %}\n\n"
    ),
    "parts": (
        "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% elif m.content is iterable %}"
        "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% elif 'image' in p or p.type == 'image' %}<img>"
        "{% else %}?{% endif %}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "reasoning": (
        "{% for m in messages %}{% if m.reasoning_content is string %}<think>{{ m.reasoning_content.strip('\\n') }}</think>"
        "{% elif '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}{{ m.content }}{% endif %}{{ m.thinking }}{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}off{% endif %}"
    ),
    "backwards": (
        "{%- set ns = namespace(last=messages|length - 1, open=true) %}{%- for m in messages[::-1] %}"
        "{%- set index = (messages|length - 1) - loop.index0 %}"
        "{%- if ns.open and m.role == 'user' and not (m.content is string and m.content.startswith('<r>')) %}"
        "{%- set ns.open = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{{ ns.last }}"
        "{%- for m in messages %}{%- if loop.index0 > ns.last %}after{{ loop.previtem.role }}{%- endif %}{%- endfor %}"
    ),
    "filters": (
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(' / ') }}"
        "{{ messages | map(attribute='role') | unique | list | sort | join(',') }}{{ messages | rejectattr('role', 'in', "
        "['user']) | list | length }}{{ 'a b' | replace(' ', '_') | upper | indent(2, true) }}{{ [3, 1] | sum }}"
        "{{ {'b': 1, 'a': 2} | dictsort }}{{ 'x' | default('y') }}{{ nothing | default('z', true) }}{{ '%s=%d' | format('n', 3) }}"
        "{{ messages | groupby('role') | map('first') | list }}{{ 'long text' | truncate(6) }}{{ '<a>' | e }}{{ 2.345 | round(1) }}"
    ),
    "values": (
        "{{ none }}{{ true }}{{ 1.0 }}{{ [1, 'a', none] }}{{ {'k': [true]} }}{{ (1, 2) }}{{ missing }}{{ 'a' * 3 }}"
        "{{ [1] * 2 + [3] }}{{ 2 ** 10 }}{{ '%s' % 'x' }}{{ '{}-{n:>4}'.format('f', n=2) }}{{ 7 // 2 }}{{ 'ab'[0:1] }}{{ 'é' ~ 1 }}"
        "{{ dict(a=1) }}{{ dict.fromkeys(['x'], 0) }}{{ range(3) | list }}{{ 'a' if false }}{{ messages[0].get('name', 'nobody') }}"
        "{{ 'a,b'.split(',') }}{{ 'x'.join(['1', '2']) }}{{ 'abc'.replace('b', '') }}{{ messages[0].items() | list }}"
    ),
    "named for special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}{{ cls_token is defined }}",
    "recursion": (
        "{% for m in messages recursive %}{{ m.role }}{% if m.children %}({{ loop(m.children) }}){% endif %}"
        "{{ loop.depth }}{% else %}none{% endfor %}{% for c in 'abc' %}{{ loop.cycle('1', '2') }}{{ c }}{% endfor %}"
    ),
    "blocks set and filtered": (
        "{% set text %}{% for m in messages %}{{ m.content }};{% endfor %}{% endset %}{{ text | length }}"
        "{% filter upper %}{{ messages[0].role }}{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}"
        "{% raw %}{{ not }}{% endraw %}{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}"
    ),
    "the loop's length": "{% for m in messages if m.role != 'system' %}{{ loop.revindex }}/{{ loop.length }}{% endfor %}",
}

USER, ANSWER = (
    {"role": "user", "content": " Why is it →\n so? "},
    {"role": "assistant", "content": "Because 'é' < \"ü\" & so."},
)
CONVERSATIONS = {
    "question": [USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "And <r>then</r>?"}],
    "system": [{"role": "system", "content": "You are\tterse."}, USER, ANSWER, {"role": "user", "content": ""}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image", "image": object()}]}],
    "calls": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, None], "y": "ü"}}}
            ],
        },
        {"role": "tool", "content": "42", "name": None},
        {"role": "assistant", "content": "<think>hm</think>\n42", "reasoning": "\nlong\n"},
    ],
    "others": [{"role": "user", "content": np.float64(1.5), "children": [USER, {**ANSWER, "children": (USER,)}]}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d <&>", "parameters": {"type": "object"}}}]
DOCUMENTS = [{"title": "T", "text": "long text"}, {"title": "Ü", "text": ""}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: place for place, token in enumerate(SPECIAL.values())}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"])), **SPECIAL
    )


@pytest.mark.fault("text", "chat templates of every structure", now="the text of transformers' apply_chat_template")
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_of_transformers(tokenizer, record_property, name):
    template, written, refused = TEMPLATES[name], 0, 0
    for conversation in CONVERSATIONS.values():
        for given in ({}, {"tools": TOOLS}, {"documents": DOCUMENTS}, {"add_generation_prompt": False}):
            options = {"add_generation_prompt": True, **given}
            ours = {"template_args": given} if "documents" in given else options
            try:
                expected = tokenizer.apply_chat_template(
                    conversation, chat_template=template, tokenize=False, **options
                )
            except Exception:
                refused += 1
                with pytest.raises(CladaError, match="the model's chat template refused the conversation: "):
                    render(template, conversation, SPECIAL, **ours)
                continue
            written += 1
            assert render(template, conversation, SPECIAL, **ours) == expected
    record_property("cases", written + refused)
    assert written >= 4


def nested(depth: int) -> str:
    return (
        "{% set ns = namespace(x=['aaaaaaaaaa']) %}{% for i in range("
        + str(depth)
        + ") %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    )


LONG = "{% set a = 'a' * 100000 %}"
HOSTILE = {
    "string times number": "{{ 'a' * 10**9 }}",
    "number times string": "{{ 10**9 * 'a' }}",
    "list times number": "{{ ([0] * 10**9) | length }}",
    "tuple times number": "{{ ((1,) * 10**9) | length }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "loops into a variable": "{% set x %}{% for a in range(99999) %}"
    + "y" * 1000
    + "{% endfor %}{% endset %}{{ x | length }}",
    "values into a variable": LONG
    + "{% set x %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endset %}{{ x | length }}",
    "loop with a condition": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10**12) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion by two": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling by ~": "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "lists in lists": nested(60) + "{{ ns.x }}",
    "lists in lists, counted": nested(60) + "{{ ns.x | string | length }}",
    "lists in lists, as JSON": nested(60) + "{{ ns.x | tojson }}",
    "lists in lists, compared": nested(60).replace("ns", "n") + nested(60) + "{{ n.x == ns.x }}",
    "dictionaries in dictionaries": nested(60).replace("[ns.x, ns.x]", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x }}",
    "namespaces in namespaces": nested(60).replace("[ns.x, ns.x]", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "centered": "{{ 'a' | center(10**9) }}",
    "padded": "{{ 'a'.ljust(10**9) }}{{ '1'.zfill(10**9) }}",
    "bytes of a number": "{{ (1).to_bytes(10**9, 'big') | length }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(10**6) | length }}",
    "format by %": "{{ '%1000000000d' % 1 }}",
    "format by % with a width given": "{{ '%*d' % (1000000000, 1) }}",
    "format by filter": "{{ '%1000000000d' | format(1) }}",
    "format by method": "{{ '{:1000000000}'.format(1) }}",
    "format by method with a width given": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format many times": LONG + "{{ (('{0}' * 100000).format(a)) | length }}",
    "format_map": LONG + "{{ (('{a}' * 100000).format_map({'a': a})) | length }}",
    "replace by method": LONG + "{{ a.replace('a', a) | length }}",
    "replace by filter": LONG + "{{ a | replace('a', a) | length }}",
    "replace between all": LONG + "{{ a.replace('', a) | length }}",
    "join by method": LONG + "{{ a.join(range(99999) | map('string')) | length }}",
    "join by filter": LONG + "{{ range(99999) | join(a) | length }}",
    "translate": LONG + "{{ a.translate({97: a}) | length }}",
    "indent": "{{ ('a\n' * 50000) | indent(99999) | length }}",
    "indent by text": LONG + "{{ ('a\n' * 50000) | indent(a) | length }}",
    "indented JSON": "{{ [[[range(999) | list]]] | tojson(indent=99999) }}",
    "wrapped": LONG + "{{ a | wordwrap(1, true, a) | length }}",
    "mapped": "{{ range(99999) | map('string') | map('center', 99999) | list | length }}",
    "sum of lists": "{% set n = namespace(l=[]) %}{{ (([[1, 2, 3, 4]] * 99999) | sum(start=[])) | length }}",
    "rounded": "{{ 1.5 | round(10**9, 'ceil') }}",
    "batched": "{{ [1] | batch(10**9, 0) | list | length }}",
    "sliced": "{{ [1] | slice(10**9) | list | length }}",
    "nested parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "nested for blocks": "".join(f"{{% for a{i} in [1] %}}" for i in range(60)) + "{% endfor %}" * 60,
    "a long template": "{{ 1 }}" * 200_000,
    "not a template": "{% for %}",
    "a file": "{% include '/etc/passwd' %}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "Python's insides by format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "a list that is changed": "{{ messages.append(1) }}",
    "a filter that is none": "{{ 'a' | shell }}",
}


# Renders templates where only so much more memory is to be had, each for a second; says what came of it and its seconds.
PROGRAM = """
import json, pathlib, resource, sys, time
from clada.errors import CladaError
from clada.runtime.chat import template_budget
from clada.runtime.chat.template import render
template_budget._SECONDS = 1.0
render("{{ messages | tojson }}", [{"role": "user", "content": "warm"}], {})
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
outcomes = {}
for name, template in json.load(sys.stdin).items():
    start = time.process_time()
    try:
        outcome = f"it wrote {len(render(template, [{'role': 'user', 'content': 'Why?'}], {}))} characters"
    except CladaError as error:
        outcome = str(error)
    outcomes[name] = outcome, time.process_time() - start
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float]]:
    call = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(call, input=json.dumps(HOSTILE), capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.fault("text", "a chat template that means harm", now="one line, within seconds and 256 MB")
@pytest.mark.parametrize("name", HOSTILE)
def test_templates_that_mean_harm_are_refused(outcomes, name):
    outcome, seconds = outcomes[name]
    assert outcome.startswith("the model's chat template ")
    assert "memory" not in outcome
    assert seconds < 2
    assert len(outcome) < 500


def test_a_long_conversation_is_within_bounds(tokenizer):
    """A thousand turns and a document of two million characters."""
    turns = [USER, ANSWER] * 500
    documents = [{"title": "long", "text": "word " * 400_000}]
    for name in ("one turn a line", "headers", "documents", "instructions in brackets"):
        expected = tokenizer.apply_chat_template(
            turns, chat_template=TEMPLATES[name], documents=documents, tokenize=False
        )
        given = {"template_args": {"documents": documents}, "add_generation_prompt": False}
        assert render(TEMPLATES[name], turns, SPECIAL, **given) == expected


def test_what_the_template_may_not_have_been_given():
    for messages, message in (
        ([], "the conversation is empty"),
        (["hello"], "a message is 'hello'; it must be a mapping"),
        ([USER, {"content": "x"}], "message 1 has the role None; it must be a text"),
    ):
        with pytest.raises(CladaError, match=message):
            render("x", messages, SPECIAL)


def test_special_tokens_come_from_the_tokenizers_configuration(tmp_path):
    config = {"bos_token": {"content": "<b>", "lstrip": False}, "eos_token": "<e>", "pad_token": None, "cls_token": 5}
    (tmp_path / TOKENIZER_CONFIG_NAME).write_text(json.dumps(config))
    assert special_tokens(PlainFolder(tmp_path)) == {"bos_token": "<b>", "eos_token": "<e>"}
    (tmp_path / CHAT_TEMPLATE_NAME).write_text("{{ bos_token }}{{ pad_token is defined }}{{ messages[0].content }}")
    assert render_chat(PlainFolder(tmp_path), [{"role": "user", "content": "x"}]) == "<b>Falsex"


def test_a_template_that_is_not_text(tmp_path):
    (tmp_path / CHAT_TEMPLATE_NAME).write_bytes(b"caf\xe9")
    with pytest.raises(CladaError, match="is not UTF-8 text: byte 3 is invalid"):
        render_chat(PlainFolder(tmp_path), [USER])
