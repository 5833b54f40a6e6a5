"""Conversation at a terminal, kept within the model's context."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clada.command_line import complain, note
from clada.errors import CladaError
from clada.runtime.chat.messages import Message, Tool
from clada.runtime.chat.template import render_chat
from clada.runtime.generation import GenerationConfig
from clada.runtime.prefix import Prefix
from clada.runtime.session import Session
from clada.runtime.status_line import Room
from clada.runtime.terminal import STANDARD_INPUT, Shown, read_prompt, show

# Tokens that are kept free for an answer, as far as leaving out earlier turns can do so: these, or a share of a short
# context.
_ROOM = 256
_SHARE = 4
_USER, _ANSWER = "user", "assistant"
_COMMANDS = "/clear begins another, /load FILE asks what a file says, /bytes SHARE sets how much is read"


@dataclass(frozen=True)
class Fitted:
    """Conversation that fits the context.

    Args:
        messages: Remaining messages.
        tokens: Their ids.
        left_out: Number of questions left out, with their answers.
    """

    messages: list[Message]
    tokens: list[int]
    left_out: int


def fit(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]], context: int, room: int
) -> Fitted:
    """Leave out the oldest turns of a conversation until the context holds it and an answer.

    Args:
        messages: A system message or none, questions and answers in turn, and the question that is asked.
        encode: Gives the token ids of a conversation.
        context: Tokens that fit.
        room: Tokens for the answer, as far as there are earlier turns to leave out.

    Raises:
        CladaError: The context does not hold the question alone.
    """
    first = _questions_begin(messages)
    kept = list(messages)
    while True:
        tokens = encode(kept)
        earlier = len(kept) - first - 1
        if len(tokens) + room <= context or (earlier == 0 and len(tokens) < context):
            return Fitted(kept, tokens, (len(messages) - len(kept)) // 2)
        if earlier == 0:
            raise CladaError(f"the question makes {len(tokens)} tokens, and the context is {context}; ask less")
        del kept[first : first + 2]


def _questions_begin(messages: Sequence[Message]) -> int:
    """Number of messages before the first question: 1 with a system message, else 0."""
    return int(bool(messages) and messages[0]["role"] != _USER)


def hold_conversation(
    session: Session,
    config: GenerationConfig,
    system: str | None,
    *,
    tools: Sequence[Tool] | None = None,
    template_args: Mapping[str, Any] | None = None,
    show_stats: bool = False,
    quiet: bool = False,
) -> None:
    """Answer questions, a line each, until there are no more.

    Args:
        session: The model.
        config: Options of the generation.
        system: System message.
        tools: Functions that the model may call; nothing calls them, and what it writes is shown.
        template_args: Arguments of the model's chat template.
        show_stats: Whether to show a table of each answer's tokens.
        quiet: Whether to leave out notes.

    Raises:
        CladaError: The model cannot chat, or would not read the tools or an argument.
    """

    def encode(messages: Sequence[Message]) -> list[int]:
        text = render_chat(session.artifact, messages, tools=tools, template_args=template_args)
        return list(session.tokenizer.encode(text, add_special_tokens=False).ids)

    def say(line: str) -> None:
        if not quiet:
            note(line)

    if sys.stdin is None:
        raise CladaError("there is no standard input to read questions from")
    with suppress(ImportError):  # where there is none lines are not edited
        importlib.import_module("readline")
    if hasattr(sys.stdin, "reconfigure"):
        # What is no text is told of, and the conversation goes on.
        sys.stdin.reconfigure(errors="surrogateescape")
    context = session.context_length
    room = min(config.max_new_tokens or _ROOM, _ROOM, context // _SHARE)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    prefix = Prefix()
    # Fails before the first question if the model cannot chat at all.
    fit([*messages, {"role": _USER, "content": "?"}], encode, context, room)
    say(f"an empty line ends the conversation, Ctrl-C an answer; {_COMMANDS}")
    while line := _next_line():
        try:
            question = _asked(line, messages, session)
            if question is None:
                continue
            fitted = fit([*messages, {"role": _USER, "content": question}], encode, context, room)
            pieces = session.stream(fitted.tokens, config, prefix)
        except CladaError as error:
            complain(f"not asked: {error}")
            continue
        if fitted.left_out:
            say(f"the conversation outgrows the context of {context} tokens: {_turns(fitted.left_out)} left out")
        shown = show(pieces, show_stats, room=Room(len(fitted.tokens), context), interruptible=True)
        messages = [*fitted.messages, {"role": _ANSWER, "content": shown.text}]
        if reason := _cut(shown, config, context):
            say(reason)


def _asked(line: str, messages: list[Message], session: Session) -> str | None:
    """Question that a line asks; None where it is a command, which is carried out.

    Raises:
        CladaError: There is no such command, or it cannot be carried out.
    """
    command, _, argument = line.partition(" ")
    if not command.startswith("/"):
        return line
    if command == "/load":
        return read_prompt(_file(argument.strip()))
    if command == "/clear":
        del messages[_questions_begin(messages) :]
    elif command == "/bytes":
        session.set_bytes(_share(argument))
    else:
        raise CladaError(f"there is no {command}, but {_COMMANDS}; what begins with a space is a question")
    return None


def _file(name: str) -> str:
    if name in ("", STANDARD_INPUT):  # there is the conversation
        raise CladaError("/load takes the name of a file")
    return name


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CladaError(f"/bytes takes a share of the bytes as 0.7, and not {text.strip()!r}") from None


def _turns(count: int) -> str:
    return "the first question and its answer are" if count == 1 else f"the first {count} questions and answers are"


def _cut(shown: Shown, config: GenerationConfig, context: int) -> str:
    """Reason why an answer is not whole; empty where it is."""
    if shown.finish is None:
        return "the answer was stopped"
    if shown.finish != "length":
        return ""
    if shown.count == config.max_new_tokens:
        return f"the answer was cut after {shown.count} tokens, as --max-new-tokens says"
    return f"the answer was cut: the context of {context} tokens is full"


def _next_line() -> str:
    """Next line of standard input that is text; empty where there is none."""
    while True:
        try:
            question = input("> ").removeprefix("\ufeff")
        except EOFError:
            return ""
        try:
            question.encode()
        except UnicodeEncodeError:
            complain(f"not asked: the question is no text in this terminal's encoding, {sys.stdin.encoding}")
            continue
        return question if question.strip() else ""
