"""The `clada export` command."""

import argparse
from dataclasses import replace
from pathlib import Path

from clada.command_line import add_progress_options, progress
from clada.contract.manifest import GOALS
from clada.exporter.calibration.policies import POLICIES, SUMMARIES, without
from clada.exporter.command_options import (
    MODEL_HELP,
    add_calibration_options,
    add_checkpoint_options,
    checkpoint_options,
)
from clada.exporter.defaults import (
    BLOCK_SIZE,
    BYTES,
    BYTES_POLICY,
    DEFAULT_OPSET,
    DEFAULT_QUANTIZED_OPSET,
    DTYPES,
    FORMATS,
    METHOD,
    METHODS,
    NEURONS_POLICY,
)
from clada.exporter.model.families import FAMILIES
from clada.ops.block_quantization import BLOCK_SIZES

DESCRIPTION = "Export a Hugging Face causal LM as a dynamically sparse ONNX model."
EPILOG = "\n".join(
    [
        "policies, all but dense within the same sparsity or cost:",
        *(f"  {name:<8} {summary}" for name, summary in SUMMARIES.items()),
        "",
        "inputs are skipped in dense decoders of every model type that transformers knows, neurons in these:",
        f"  {', '.join(FAMILIES)}",
    ]
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, and the function that runs it."""
    parser.add_argument("output", type=Path, help="the .onnx file to write; its companions go beside it")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    add_calibration_options(parser)
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--bytes",
        type=float,
        metavar="SHARE",
        help=f"share of all weights' bytes that a token reads, by skipping inputs of every matrix (default: {BYTES})",
    )
    goal.add_argument(
        "--ffn-cost",
        type=float,
        metavar="SHARE",
        help="instead: share of the feed-forward weights' bytes that a token reads, by skipping neurons, as below",
    )
    goal.add_argument("--target-sparsity", type=float, metavar="SHARE", help="instead: mean share of neurons to skip")
    goal.add_argument("--error-budget", type=float, metavar="NATS", help="instead: most KL divergence, in nats a token")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help=f"what decides what is skipped, see below (default: {BYTES_POLICY}; with one of the other goals "
        f"{NEURONS_POLICY})",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="what clada calibrate wrote of the model, not measured again"
    )
    parser.add_argument(
        "--no-anticipation", action="store_true", help="leave out the probes of the hidden state: the paper's method"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the weights; those in bfloat16 are multiplied in float32 (default: %(default)s)",
    )
    parser.add_argument("--quantize", choices=FORMATS, help="round weights, in blocks, before anything is calibrated")
    parser.add_argument(
        "--block-size",
        type=int,
        choices=BLOCK_SIZES,
        default=BLOCK_SIZE,
        help="with --quantize: weights a scale (default: %(default)s)",
    )
    parser.add_argument(
        "--quantize-method",
        choices=METHODS,
        default=METHOD,
        help="with --quantize: to the nearest, or later weights making up for earlier ones (default: %(default)s)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help=f"of the graph (default: {DEFAULT_OPSET}; with --quantize {DEFAULT_QUANTIZED_OPSET})",
    )
    parser.add_argument("--all-logits", action="store_true", help="give logits for all positions, not only the last")
    parser.add_argument("--overwrite", action="store_true", help="replace an artifact that is there")
    add_checkpoint_options(parser)
    add_progress_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from clada.exporter.calibration.calibrate import CalibrationConfig
    from clada.exporter.export import ExportConfig, export

    goal = {name: getattr(args, name) for name in GOALS}
    calibration = CalibrationConfig(**goal, policy=None if args.policy is None else POLICIES[args.policy])
    if args.no_anticipation:
        rules = without(calibration.rules, "anticipation")
        calibration = replace(calibration, policy=rules, name=calibration.policy_name)
    config = ExportConfig(
        calibration=calibration,
        calibration_file=args.calibration,
        calibration_data=args.calibration_data,
        calibration_tokens=args.calibration_tokens,
        seed=args.seed,
        dtype=args.dtype,
        quantize=args.quantize,
        block_size=args.block_size,
        quantize_method=args.quantize_method,
        opset=args.opset,
        all_logits=args.all_logits,
        overwrite=args.overwrite,
        **checkpoint_options(args),
    )
    export(args.output, args.model, config, progress(args))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "export",
        help="make a sparse ONNX model of a Hugging Face checkpoint",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
