"""The `clada lm-eval` command: lm-eval's own command line, which by itself finds only its built-in models."""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence

from clada.errors import CladaError
from clada.evaluation.settings import LM_EVAL_MODEL

_INTRODUCTION = """usage: clada lm-eval --model_args model=PATH[,threads=N] --tasks TASK [TASK ...] [options of lm-eval]

Run lm-eval's tasks on an artifact, PATH its .onnx file; --model is clada. `clada lm-eval ls tasks` lists the tasks.
What follows is the help of lm-eval itself.
"""


def _words(options: Sequence[str]) -> list[str]:
    """Arguments for lm-eval: its own subcommands may stand first."""
    command, *rest = options
    if command in ("ls", "validate"):
        return list(options)
    return ["run", "--model", LM_EVAL_MODEL, *(rest if command == "run" else options)]


def _is_of_options(error: ValueError) -> bool:
    """Whether lm-eval rejected its options, as opposed to a failure in the evaluation."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith(("lm_eval.config", "lm_eval._cli"))


def _print_help() -> None:
    from lm_eval.__main__ import cli_evaluate

    text = io.StringIO()
    sys.argv = ["lm_eval", "run", "--help"]
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli_evaluate()
    print(_INTRODUCTION)
    print(text.getvalue().replace("default: hf", f"default: {LM_EVAL_MODEL}"), end="")


def _run(args: argparse.Namespace) -> None:
    if not args.options or args.options[0] in ("-h", "--help"):
        _print_help()
        return
    words = _words(args.options)
    if not {"-h", "--help"} & set(words):
        from clada.evaluation import lm_eval_adapter  # noqa: F401 # registers the model
    from lm_eval.__main__ import cli_evaluate

    # lm-eval reads its options there and nowhere else.
    sys.argv = ["lm_eval", *words]
    try:
        cli_evaluate()
    except ValueError as error:
        if _is_of_options(error):
            raise CladaError(f"lm-eval refused its options: {error}") from error
        raise


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    # No prefix makes an option here: every word is lm-eval's to read.
    parser = commands.add_parser(
        "lm-eval", help="run lm-eval's tasks on an artifact", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER)
    parser.set_defaults(run=_run)
