"""The `clada eval` command."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from clada.command_line import add_bytes, add_quiet
from clada.evaluation.settings import EvaluationSettings
from clada.exporter.command_options import add_checkpoint_options, checkpoint_options

if TYPE_CHECKING:
    from clada.evaluation.evaluate import Evaluation


def _lines(evaluation: "Evaluation") -> list[str]:
    """Format the metrics as a table."""
    width = max(map(len, evaluation.metrics))
    return [f"{'':<{width}}  {'value':>11}  95% of resamples"] + [
        f"{name:<{width}}  {estimate.value:11.6g}  {estimate.low:.6g} to {estimate.high:.6g}"
        for name, estimate in evaluation.metrics.items()
    ]


# Of the table of an artifact and its parts.
_OF_PARTS = ("read_fraction", "ffn_bytes", "kl", "disagreement", "perplexity_ratio", "accuracy_ratio")


def _cell(evaluation: "Evaluation", metric: str) -> str:
    """Format a figure; a dash where it is not defined."""
    estimate = evaluation.metrics.get(metric)
    return "-" if estimate is None else f"{estimate.value:.6g}"


def _part_lines(evaluation: "Evaluation") -> list[str]:
    """Format the subject beside its parts as a table; empty where it has no parts."""
    if not evaluation.parts:
        return []
    columns = [["", *_OF_PARTS]]
    columns += [
        [part.subject.name, *(_cell(part, metric) for metric in _OF_PARTS)] for part in (*evaluation.parts, evaluation)
    ]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return ["", *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)]


def _run(args: argparse.Namespace) -> None:
    from clada.contract.files import check_writable, write
    from clada.evaluation.exported import evaluate_artifact
    from clada.evaluation.result import result_json, token_table
    from clada.runtime.find_model import find_model

    settings = EvaluationSettings(**{field.name: getattr(args, field.name) for field in fields(EvaluationSettings)})
    for path in filter(None, (args.json, args.tokens)):
        check_writable(path)
    evaluation = evaluate_artifact(
        find_model(args.path),
        args.reference,
        args.data,
        settings,
        threads=args.threads,
        bytes=args.bytes,
        **checkpoint_options(args),
    )
    print("\n".join([*_lines(evaluation), *_part_lines(evaluation)]))
    if args.tokens is not None:
        write(args.tokens, token_table(evaluation))
    write(args.json, result_json(evaluation))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "eval",
        help="measure what sparsity costs, against the checkpoint",
        description="Read held-out text as a user's is read - a prompt densely, what follows token by token in "
        "decode - and compare with the checkpoint: perplexity, accuracy, KL divergence, multiple choice, cloze and "
        "generation, each with the interval in which 95% of resamples of the sequences lie.",
    )
    parser.add_argument("path", type=Path, help="the artifact's .onnx file or folder")
    parser.add_argument("--reference", required=True, help="the checkpoint's folder, or a Hugging Face model id")
    parser.add_argument("--data", type=Path, required=True, help="a text file or a JSONL of {text} that is held out")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="write every figure")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="write a table of every token, as .npz")
    counts = {
        "sequences": "rows of tokens drawn from the text",
        "prompt-tokens": "tokens of a row that are read densely",
        "decode-tokens": "tokens after them that are read in decode and scored",
        "seed": "decides what is drawn",
        "generation-tokens": "generated tokens compared with the dense model's",
    }
    for name, what in counts.items():
        default = getattr(EvaluationSettings, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--threads", type=int, default=0, help="0 lets ONNX Runtime choose (default)")
    add_bytes(parser)
    add_checkpoint_options(parser)
    add_quiet(parser)
    parser.set_defaults(run=_run)
