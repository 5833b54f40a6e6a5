"""The `clada report` command."""

import argparse
from pathlib import Path

from clada.command_line import utf8_text
from clada.errors import CladaError


def _run(args: argparse.Namespace) -> None:
    from clada.contract.files import check_writable, write
    from clada.evaluation.heat_map import heat_map
    from clada.evaluation.regression import regress
    from clada.evaluation.report import report_html
    from clada.evaluation.report_data import read_groups
    from clada.evaluation.token_table import read_token_table
    from clada.runtime.find_model import find_model

    if (args.model is None) != (args.prompt is None):
        raise CladaError("--model and --prompt are given together, or neither is")
    check_writable(args.out)
    groups = read_groups(args.results)
    tokens = None
    if args.tokens is not None:
        table = read_token_table(args.tokens)
        tokens = table, regress(table)
    generated = None if args.model is None else heat_map(find_model(args.model), args.prompt)
    write(args.out, report_html(groups, tokens, generated).encode())
    count = sum(len(group.results) for group in groups)
    print(f"wrote {args.out}: {count} result{'s' if count != 1 else ''}")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "report",
        help="show results of `clada eval` as one HTML page",
        description="Write one HTML page that needs no network: quality against cost, every figure, each layer's "
        "sparsity and, if asked for, what a token's difficulty says of its cost and a generated text.",
    )
    parser.add_argument("out", type=Path, metavar="OUT.html", help="the page")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="files of `clada eval --json`, or folders",
    )
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="a table of `clada eval --tokens`, to regress")
    parser.add_argument(
        "--model", type=Path, metavar="MODEL", help="an artifact's .onnx file or folder, to continue --prompt"
    )
    parser.add_argument("--prompt", type=utf8_text, help="the text that --model continues")
    parser.set_defaults(run=_run)
