"""Chat templates as in transformers' apply_chat_template, within bounds of time and memory.

A template is code that came with a model. jinja2's sandbox keeps it from files and from Python's insides, and bounds
ranges, but not what it computes: that is counted here (template_budget.py).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from clada.contract.artifact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, Artifact
from clada.errors import CladaError
from clada.runtime.chat.messages import Message, Tool, plain, plain_messages, plain_tools
from clada.runtime.chat.template_arguments import SPECIAL_TOKENS, check_arguments, check_reads_tools
from clada.runtime.chat.template_budget import Budget, budget, within

_LARGEST_TEMPLATE = 1_000_000  # characters

T = TypeVar("T")


class _Generation(Extension):
    """`{% generation %}`, which marks what a model is trained to say: the text in it is written as it is."""

    tags = {"generation"}  # noqa: RUF012 # jinja2's name, and its type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


class _Namespace(Namespace):
    """Namespace without names that begin with an underscore, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no name that begins with an underscore: {name!r}")


class _Dict:
    """Restricted `dict`, without other members of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Filter that writes JSON not escaped for HTML, unlike jinja2's own."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return budget().json(value, encoder)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Environment(ImmutableSandboxedEnvironment):
    """Sandbox that counts a template's computations."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        for name, function in list(self.filters.items()):
            self.filters[name] = _counted(name, function)
        # After those: the transformed template calls them directly. They take the context, so that nothing folds them.
        self.filters |= {"_turn": _turn, "_text": _text, "_written": _written, "_made": _made, "_joined": _joined}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if not name.startswith("_")}
        args = budget().call(obj, args, given)
        return budget().made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget().operation(operator, left, right)
        return budget().made(super().call_binop(context, operator, left, right))


def _counted(name: str, function: Any) -> Any:
    """Filter that counts against the budget; some take the context or the environment first."""
    leading = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        value = budget().filter(name, args[leading], args[leading + 1 :], kwargs)
        return budget().made(function(*args[:leading], value, *args[leading + 1 :], **kwargs))

    return filtered


@jinja2.pass_context
def _turn(_context: Context, _value: Any) -> None:
    budget().step()


@jinja2.pass_context
def _text(_context: Context, size: int) -> None:
    budget().wrote_size(size)


@jinja2.pass_context
def _written(_context: Context, value: Any) -> Any:
    return budget().wrote(value)


@jinja2.pass_context
def _made(_context: Context, value: Any) -> Any:
    return budget().made(value)


@jinja2.pass_context
def _joined(_context: Context, values: tuple[Any, ...]) -> str:
    budget().made(values)
    return str(budget().made("".join(map(str, values))))


class _Counting(NodeTransformer):
    """Transformer that adds counting to a template: to output, loop iterations, and values made without a call."""

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802 # jinja2's names
        self.generic_visit(node)
        size = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        node.nodes = [c if isinstance(c, nodes.TemplateData) else _filter(c, "_written") for c in node.nodes]
        return [_statement(nodes.Const(size), "_text", node), node]

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _statement(nodes.Const(0), "_turn", node))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "_joined")

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "_made")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "_made")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "_made") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "_made") if isinstance(node.arg, nodes.Slice) else node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _statement(value: nodes.Expr, name: str, near: nodes.Node) -> nodes.ExprStmt:
    value.set_lineno(near.lineno)
    return nodes.ExprStmt(_filter(value, name), lineno=near.lineno)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = _Environment()
    tree = environment.parse(template)
    return environment.from_string(_Counting().visit(tree).set_environment(environment))


@lru_cache(maxsize=8)
def _names_read(template: str) -> frozenset[str]:
    """Names that a template reads and does not always set itself before, those of functions included."""
    return frozenset(meta.find_undeclared_variables(_Environment().parse(template)))


def render(
    template: str,
    messages: Sequence[Message],
    variables: Mapping[str, str],
    *,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool = True,
    template_args: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation by a chat template.

    Args:
        template: In jinja2's language.
        messages: Each with `role` and `content`, and whatever else the template reads.
        variables: Special tokens by their names.
        tools: Functions that the model may call, as JSON schemas.
        add_generation_prompt: End where the answer begins.
        template_args: Variables of this template alone, such as `documents` and `enable_thinking`.

    Raises:
        CladaError: The template refuses the conversation, is none, or computes too much.
    """
    _check_size(template)
    try:
        given = {
            "documents": None,
            **plain(template_args or {}),
            **variables,
            "messages": plain_messages(messages),
            "tools": None if tools is None else plain_tools(tools),
            "add_generation_prompt": add_generation_prompt,
        }
    except RecursionError as error:
        raise CladaError("what the chat template is to write is nested too deeply") from error
    return _of_template(lambda: within(Budget(given), lambda: _compiled(template).render(given)))


def _check_size(template: str) -> None:
    if len(template) > _LARGEST_TEMPLATE:
        raise CladaError(f"the model's chat template has {len(template):,} characters; {_LARGEST_TEMPLATE:,} are read")


def _of_template(work: Callable[[], T]) -> T:
    """Do what a template may fail in."""
    try:
        return work()
    except Exception as error:  # a template is a program, and may fail in any way
        raise CladaError(f"the model's chat template refused the conversation: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    kinds = {RecursionError: "it calls itself without end", MemoryError: "it takes too much memory"}
    return kinds.get(type(error)) or str(error) or type(error).__name__


def _check_reads(template: str, template_args: Mapping[str, Any], tools: Sequence[Tool] | None) -> None:
    """Raise CladaError where the template would not read what it is given beside messages."""
    _check_size(template)
    names, functions = _of_template(lambda: _names_read(template)), _Environment().globals
    check_arguments(template_args, names - functions.keys(), functions)
    if tools is not None:
        check_reads_tools(names)


def render_chat(
    artifact: Artifact,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    tools: Sequence[Tool] | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation as the model expects it, up to where its answer begins.

    Args:
        artifact: Artifact whose chat template renders it.
        messages: Each with `role` and `content`.
        add_generation_prompt: See `render`.
        tools: Functions that the model may call.
        template_args: Arguments of the model's own template, by name.

    Raises:
        CladaError: The model has no chat template, it refuses the messages, or does not read what it is given.
    """
    content = artifact.content(CHAT_TEMPLATE_NAME)
    if content is None:
        raise CladaError("this model has no chat template; use `clada run` with a prompt instead")
    try:
        template = content.decode("utf-8")
    except UnicodeDecodeError as error:
        path = artifact.path(CHAT_TEMPLATE_NAME)
        raise CladaError(f"{path} is not UTF-8 text: byte {error.start} is invalid") from error
    _check_reads(template, template_args or {}, tools)
    return render(
        template,
        messages,
        special_tokens(artifact),
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        template_args=template_args,
    )


def special_tokens(artifact: Artifact) -> dict[str, str]:
    """Special tokens that an artifact's tokenizer names."""
    config = artifact.settings(TOKENIZER_CONFIG_NAME)
    tokens = {name: config.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, Mapping) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
