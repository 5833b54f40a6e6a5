"""The `clada calibrate` command: measure the worth of a model's bytes once, for artifacts of any share of them."""

import argparse
from pathlib import Path

from clada.command_line import add_progress_options, progress
from clada.exporter.command_options import (
    MODEL_HELP,
    add_calibration_options,
    add_checkpoint_options,
    checkpoint_options,
)
from clada.exporter.defaults import CALIBRATION_SUFFIX


def _run(args: argparse.Namespace) -> None:
    # What help does without is imported only for the work.
    from clada.exporter.calibration.to_file import calibrate

    calibrate(
        args.output,
        args.model,
        shares=args.bytes,
        data=args.calibration_data,
        tokens=args.calibration_tokens,
        seed=args.seed,
        report=progress(args),
        **checkpoint_options(args),
    )


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "calibrate",
        help="measure what a checkpoint's bytes are worth, for exports with --bytes",
        description="Measure once what every input of every matrix is worth; clada-export --calibration FILE "
        "--bytes SHARE then makes an artifact of any share without measuring again.",
    )
    parser.add_argument("output", type=Path, help=f"the file to write, *{CALIBRATION_SUFFIX}")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument(
        "--bytes",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="shares of all weights' bytes to measure beside the usual ones",
    )
    add_calibration_options(parser)
    add_checkpoint_options(parser)
    add_progress_options(parser)
    parser.set_defaults(run=_run)
