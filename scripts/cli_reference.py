"""Writes docs/reference/cli.md: every command and option, read from the parsers.

The page depends on the parsers alone: not on the width of a terminal, the release of Python or the extras installed.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from clada.exporter.cli import command_parser as export_parser
from clada.runtime.cli import command_parser as clada_parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
INTRODUCTION = """# Command line

Made by `python scripts/cli_reference.py` from the parsers. `clada COMMAND --help` says the same, and `python -m clada`
is `clada`.

A command's exit code is 0 when it ends well, 1 where something given cannot be used, 2 where the command line cannot
be, 130 when it was interrupted and 141 when nobody reads what it writes; an error is one line on standard error.
"""
_OF_EVERY_COMMAND = (argparse._HelpAction, argparse._VersionAction)
_NEEDED = re.compile(r" \(needs clada\[.*\]\)$")  # help says so where an extra is not installed


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _help(action: argparse.Action, prog: str) -> str:
    """Help of an option, as argparse fills it in."""
    values = {name: getattr(value, "__name__", value) for name, value in vars(action).items()}
    if action.choices is not None:
        values["choices"] = ", ".join(map(str, action.choices))
    return (action.help or "") % {**values, "prog": prog}


def _value(action: argparse.Action) -> str:
    """Value that follows an option."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        name = action.metavar
    elif action.choices is not None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        name = action.dest.upper()
    return f" {name} [{name} ...]" if action.nargs == "+" else f" {name}"


def _table(actions: list[argparse.Action], prog: str) -> list[str]:
    rows = []
    for action in actions:
        if not action.option_strings:
            name = f"`{_value(action).strip()}`" if isinstance(action.metavar, str) else f"`{action.dest}`"
        else:
            name = ", ".join(f"`{option}{_value(action)}`" for option in action.option_strings)
        required = " (required)" if action.required and action.option_strings else ""
        rows.append(f"| {name} | {_cell(_help(action, prog))}{required} |")
    return [f"| {'option' if actions[0].option_strings else 'argument'} | what it is |", "|---|---|", *rows]


def _section(parser: argparse.ArgumentParser, title: str, summary: str) -> Iterator[str]:
    """Section of a command: its description or summary, its arguments in their groups, and the epilogue of its help."""
    yield from ("", f"## {title}", "")
    yield (parser.description or f"{summary[0].upper()}{summary[1:]}").strip().removesuffix(".") + "."
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, _OF_EVERY_COMMAND)]
        if any(action.nargs == argparse.REMAINDER for action in actions):
            yield from ("", f"Its options are another program's: `{title} --help` shows them.")
        elif actions:
            if group.description:
                yield from ("", f"{(group.title or '').capitalize()}. {group.description}")
            yield from ("", *_table(actions, parser.prog))
    for group in parser._mutually_exclusive_groups:
        names = ", ".join(f"`{action.option_strings[0]}`" for action in group._group_actions if action.option_strings)
        yield from ("", f"{'Exactly' if group.required else 'At most'} one of {names} may be given.")
    if parser.epilog:
        epilog = parser.epilog.strip().splitlines()
        # Where its lines are written as they are to be shown.
        yield from ("", *(["```text", *epilog, "```"] if len(epilog) > 1 else epilog))


def page() -> str:
    """Text of the page."""
    parser = clada_parser()
    commands = parser._subparsers._group_actions[0]
    summaries = {action.dest: _NEEDED.sub("", action.help) for action in commands._choices_actions}
    extras = {entry.name: entry.extras for entry in entry_points(group="clada.commands")}
    lines = INTRODUCTION.splitlines()
    lines += ["", "| command | does | needs the extra |", "|---|---|---|"]
    for name in commands.choices:
        needed = ", ".join(f"`{extra}`" for extra in extras.get(name, []))
        lines.append(f"| [`clada {name}`](#clada-{name}) | {_cell(summaries[name])} | {needed} |")
    lines.append("| [`clada-export`](#clada-export) | the same as `clada export` | `export` |")
    for name, command in commands.choices.items():
        if name != "export":
            lines += _section(command, f"clada {name}", summaries[name])
    lines += _section(export_parser(), "clada-export", "")
    return "\n".join(lines) + "\n"


def main() -> int:
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
