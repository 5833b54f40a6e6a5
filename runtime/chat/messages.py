"""Messages and tools as chat templates expect them: plain data, checked, as they come from strangers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clada.contract.typed_json import shown
from clada.errors import CladaError

# A role and content, and what else the template reads: `tool_calls` of an assistant, `tool_call_id` of a tool's result.
Message = Mapping[str, Any]
# A function that the model may call: {"type": "function", "function": {"name", "description", "parameters"}}.
Tool = Mapping[str, Any]

# Names that a message's reasoning goes by; the first is what most templates read.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def plain(value: Any) -> Any:
    """Copy of plain data: a template must not reach the methods of anything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    # Of a subclass the plain value: not what it says of itself.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: no key without a value, the reasoning by each of its names.

    Raises:
        CladaError: There is none, one has no role, or calls of tools that make no sense.
    """
    if not messages:
        raise CladaError("the conversation is empty: it needs a message")
    return [_plain_message(message, index) for index, message in enumerate(messages)]


def _plain_message(message: Message, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise CladaError(f"a message is {shown(message)}; it must be a mapping with role and content")
    kept: dict[str, Any] = {key: plain(value) for key, value in message.items() if value is not None}
    if not isinstance(kept.get("role"), str):
        raise CladaError(f"message {index} has the role {shown(kept.get('role'))}; it must be a text such as user")
    if "tool_calls" in kept:
        where = f"tool_calls of message {index}"
        kept["tool_calls"] = [_plain_call(call, where) for call in _list(kept["tool_calls"], where)]
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    if reasoning is not None:
        kept = {"thinking": reasoning, **kept, _REASONING[0]: reasoning}
    return kept


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise CladaError(f"{where} is {shown(value)}; it must be a list")
    return value


def _plain_call(call: Any, where: str) -> dict[str, Any]:
    """Call of a tool, whose arguments are an object: where they are JSON text, as in OpenAI's API, what that says."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise CladaError(f"{where} holds {shown(call)}; a call needs a function with a name and arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise CladaError(f"{where}: the arguments of {shown(function['name'])} are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise CladaError(
            f"{where}: the arguments of {shown(function['name'])} are {shown(arguments)}; they must be an object"
        )
    return call | {"function": function | {"arguments": arguments}}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def plain_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates expect them.

    Raises:
        CladaError: They are not a list of functions, each with a name of its own.
    """
    checked, names = [], set()
    for index, tool in enumerate(_list(tools, "tools")):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise CladaError(f'tools[{index}] is {shown(tool)}; it must be {{"type": "function", "function": {{...}}}}')
        name, description = function.get("name"), function.get("description", "")
        if not _is_name(name):
            raise CladaError(f"the name of tools[{index}] is {shown(name)}; it must be a text")
        if name in names:
            raise CladaError(f"tools has two functions of the name {shown(name)}; each needs a name of its own")
        if not isinstance(description, str):
            raise CladaError(f"the description of the tool {shown(name)} is {shown(description)}; it must be a text")
        if not isinstance(function.get("parameters", {}), Mapping):
            raise CladaError(f"the parameters of the tool {shown(name)} are no object; they must be a JSON schema")
        names.add(name)
        checked.append(plain(tool))
    return checked
