"""The `clada-export` command."""

import argparse
from pathlib import Path

from clada.exporter.calibrate import CalibrationConfig
from clada.exporter.export import DTYPES, ExportConfig, export
from clada.exporter.families import FAMILIES
from clada.exporter.policies import POLICIES, without
from clada.exporter.quantization import FORMATS, METHODS
from clada.exporter.trace import DEFAULT_OPSET, DEFAULT_QUANTIZED_OPSET
from clada.plugins.errors import exit_code
from clada.plugins.ops.block_quantization import BLOCK_SIZES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clada-export",
        description="Export a Hugging Face causal LM as a dynamically sparse ONNX model.",
        epilog=f"Model types: {', '.join(FAMILIES)}.",
    )
    parser.add_argument("output", type=Path, help="the .onnx file to write; its companions go beside it")
    parser.add_argument("--model", required=True, help="a checkpoint's folder, or a Hugging Face model id")
    parser.add_argument("--calibration-data", type=Path, help="text or JSONL to calibrate on (default: Python sources)")
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=ExportConfig.calibration_tokens,
        help="how many tokens of it to use (default: %(default)s)",
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--target-sparsity",
        type=float,
        default=CalibrationConfig.target_sparsity,
        help="mean share of neurons to skip (default: %(default)s)",
    )
    goal.add_argument(
        "--ffn-cost", type=float, help="instead: the share of the feed-forward weights' bytes that a token reads"
    )
    goal.add_argument("--error-budget", type=float, help="instead: the most KL divergence, in nats a token")
    parser.add_argument(
        "--policy", choices=POLICIES, default="clada", help="what decides what is computed (default: %(default)s)"
    )
    parser.add_argument(
        "--no-anticipation", action="store_true", help="leave out the probe of the hidden state: the paper's method"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which parts of the text are used")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    parser.add_argument("--quantize", choices=FORMATS, help="round weights, in blocks, before anything is calibrated")
    parser.add_argument(
        "--block-size",
        type=int,
        choices=BLOCK_SIZES,
        default=ExportConfig.block_size,
        help="with --quantize: weights a scale (default: %(default)s)",
    )
    parser.add_argument(
        "--quantize-method",
        choices=METHODS,
        default=ExportConfig.quantize_method,
        help="with --quantize: to the nearest, or later weights making up for earlier ones (default: %(default)s)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help=f"of the graph (default: {DEFAULT_OPSET}; with --quantize {DEFAULT_QUANTIZED_OPSET})",
    )
    parser.add_argument("--all-logits", action="store_true", help="give logits for all positions, not only the last")
    parser.add_argument("--overwrite", action="store_true", help="replace an artefact that is there")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")
    parser.add_argument("--allow-pickle", action="store_true", help="read pickle weights; they can run code too")
    return parser


def _run(args: argparse.Namespace) -> None:
    values = vars(args)
    output, source = values.pop("output"), values.pop("model")
    goal = {name: values.pop(name) for name in ("target_sparsity", "ffn_cost", "error_budget")}
    name = values.pop("policy")
    policy = POLICIES[name]
    if values.pop("no_anticipation"):
        policy = without(policy, "anticipation")
    config = ExportConfig(calibration=CalibrationConfig(**goal, policy=policy, name=name), **values)
    export(output, source, config, lambda line: print(line, flush=True))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args))
