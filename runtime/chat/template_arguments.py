"""Arguments for a model's own chat template, such as enable_thinking, and what of them it reads."""

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from clada.errors import CladaError

# Of the tokenizer's configuration: what a template may name.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOOLS = "tools"
# What the runtime gives a template, and what it may call: no argument takes their place.
GIVEN = ("messages", TOOLS, "add_generation_prompt", *SPECIAL_TOKENS)


def check_arguments(arguments: Mapping[str, Any], read: Collection[str], functions: Collection[str]) -> None:
    """Refuse arguments that a template would not read, or that take the place of what it is given.

    Args:
        arguments: By name.
        read: Names that the template reads.
        functions: Names of the functions that it may call.

    Raises:
        CladaError: There is one.
    """
    for name in arguments:
        if name in GIVEN or name in functions:
            raise CladaError(f"a template argument is named {name!r}, which is what every chat template is given")
        if name not in read:
            free = sorted(set(read) - set(GIVEN))
            others = f"it reads {', '.join(free)}" if free else "it takes none"
            raise CladaError(f"the model's chat template reads no argument {name!r}; {others}")


def check_reads_tools(read: Collection[str]) -> None:
    """Refuse tools where the template would not read them.

    Raises:
        CladaError: It would not.
    """
    if TOOLS not in read:
        raise CladaError("the model's chat template reads no tools: the model cannot be told of functions")


def parse_argument(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`: a value that is JSON is what that says, any other is a text.

    Raises:
        CladaError: It is of another form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CladaError(f"a template argument is {text!r}; it must be NAME=VALUE, as in enable_thinking=false")
    try:
        return name, json.loads(value, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return name, value


def _no_json(word: str) -> NoReturn:
    raise ValueError(word)
