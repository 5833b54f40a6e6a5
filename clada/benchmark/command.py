"""The `clada bench` command."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clada.benchmark.precisions import OF_MODELS, PRECISIONS
from clada.benchmark.settings import ArtifactSettings, BenchSettings
from clada.benchmark.shapes import SHAPES, TINY, WHATS
from clada.command_line import add_quiet


def _run(args: argparse.Namespace) -> None:
    from clada.benchmark.run import bench

    bench(args)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "bench",
        help="time an artifact, or the ops and whole models, against ONNX Runtime's dense graphs",
        description="Time an artifact at several shares of its bytes, beside ONNX Runtime's dense graph of the same "
        "weights; or random weights of real shapes: our ops dense and sparse, ONNX Runtime's dense graph in float32 "
        "and quantized, and torch. All in turns in one process; and the floor, the time it takes to read what must be "
        "read. A whole model of random weights takes several times its size in memory and on disk.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="path",
        help="an artifact that skips inputs, or several of one model: time them, at several shares of their bytes, and "
        "no random weights",
    )
    parser.add_argument(
        "--bytes",
        nargs="+",
        type=float,
        metavar="SHARE",
        help=f"with an artifact: shares of the weights' bytes to read (default: {_listed(ArtifactSettings.shares)})",
    )
    parser.add_argument(
        "--context",
        nargs="+",
        type=int,
        metavar="TOKENS",
        help="with an artifact: numbers of tokens before what is timed "
        f"(default: {_listed(ArtifactSettings.contexts)})",
    )
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="with an artifact: text to read, or - for standard input (default: Python sources that come with clada)",
    )
    parser.add_argument(
        "--gguf",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="with an artifact: time these files of the same model too, in llama.cpp, through llama-cpp-python",
    )
    parser.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="with an artifact: compare what each predicts with this checkpoint in float32",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="with --reference: held-out text, a text file or a JSONL of {text}",
    )
    parser.add_argument("--shape", nargs="+", metavar="NAME", help=f"of {', '.join(SHAPES)} (default: all but {TINY})")
    parser.add_argument(
        "--what",
        nargs="+",
        choices=WHATS,
        help="layer and model, where a shape has one, by default; linears are the products of one decoder layer, each "
        "skipping inputs and not neurons; genai decodes a whole int4 model with 40%% of "
        "neurons active against onnxruntime-genai's generator, and compares how they load",
    )
    parser.add_argument(
        "--active",
        nargs="+",
        type=float,
        metavar="SHARE",
        help=f"shares of neurons or inputs that stay active (default: {_listed(BenchSettings.active)})",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=PRECISIONS,
        help="precisions that are compared, beside the dense graph in float32; of a whole model only "
        f"{', '.join(OF_MODELS)} (default: all)",
    )
    parser.add_argument("--threads", type=int, default=BenchSettings.threads, help="0 is one a core (default)")
    parser.add_argument("--rounds", type=int, default=BenchSettings.rounds, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the ratios, as .png or .svg; with --reference KL divergence against tokens per second",
    )
    add_quiet(parser)
    parser.set_defaults(run=_run)
