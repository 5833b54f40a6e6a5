"""The `clada` command: run, chat, inspect, build, and the commands that other parts of the project add."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, requires
from typing import Any

from clada.command_line import Parser, add_version, run_command
from clada.runtime.generation_command import add_chat_parser, add_run_parser
from clada.runtime.inspect_command import add_parser as add_inspect_parser
from clada.runtime.trt.building.command import add_parser as add_build_parser


def _other_commands() -> list[EntryPoint]:
    """Commands that other parts of the project register, each with the extra it needs."""
    return sorted(entry_points(group="clada.commands"), key=lambda entry: entry.name)


def _distributions(extra: str) -> Iterator[str]:
    """Names of the packages that an extra of ours installs, those of the extras that it includes too."""
    for requirement in requires("clada") or []:
        if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", requirement):
            name, included = re.match(r"([\w.-]+)(?:\[([\w.-]+)\])?", requirement).groups()  # type: ignore[union-attr]
            yield from _distributions(included) if name == "clada" else [name]


def _is_installed(extra: str) -> bool:
    try:
        for name in _distributions(extra):
            distribution(name)
    except PackageNotFoundError:
        return False
    return True


class _Needing:
    """Group of commands; the help of a parser added to it says which requirements are not installed."""

    def __init__(self, commands: "argparse._SubParsersAction[argparse.ArgumentParser]", needed: str) -> None:
        self._commands, self._needed = commands, needed

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        options["help"] += f" (needs {self._needed})"
        return self._commands.add_parser(name, **options)


def _package(extras: Sequence[str]) -> str:
    return f"clada[{', '.join(extras)}]"


def _add_other_commands(commands: Any) -> None:
    for entry in _other_commands():
        needed = [extra for extra in entry.extras if not _is_installed(extra)]
        entry.load()(_Needing(commands, _package(needed)) if needed else commands)


def command_parser() -> argparse.ArgumentParser:
    """Make the parser of `clada`, with the commands of all that is installed."""
    parser: argparse.ArgumentParser = Parser(
        prog="clada", description="Make dynamically sparse language models, and run them."
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run_parser(commands)
    add_chat_parser(commands)
    add_inspect_parser(commands)
    add_build_parser(commands)
    _add_other_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    asked = words[0] if words else ""

    def package() -> str:
        return next((_package(entry.extras) for entry in _other_commands() if entry.name == asked), "clada")

    return run_command(command_parser, words, f"`clada {asked}`", package)
