"""The `clada lm-eval` command: lm-eval's own command line, which by itself finds only the models that it ships."""

import argparse
import sys

from lm_eval.__main__ import cli_evaluate

from clada.evaluation import lm_eval_adapter


def _run(args: argparse.Namespace) -> None:
    # lm-eval reads its options there and nowhere else.
    sys.argv = ["lm_eval", "--model", lm_eval_adapter.NAME, *(args.options or ["--help"])]
    cli_evaluate()


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    # No prefix makes an option here: every word is lm-eval's to read.
    parser = commands.add_parser(
        "lm-eval", help="run lm-eval's tasks on an artefact", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER)
    parser.set_defaults(run=_run)
