"""The `clada-export` command, another name of `clada export`."""

import argparse
import sys

from clada.command_line import Parser, add_version, run_command
from clada.exporter.command import DESCRIPTION, EPILOG, add_arguments


def command_parser() -> Parser:
    """Make the parser of `clada-export`."""
    parser = Parser(
        prog="clada-export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(command_parser, words, called="clada-export", package=lambda: "clada[export]")
