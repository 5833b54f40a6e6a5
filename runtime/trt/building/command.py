"""The `clada build` command."""

import argparse
from pathlib import Path

from clada.command_line import add_progress_options, progress
from clada.contract.engine_choices import RUNTIMES, TRT_KERNELS


def _run(args: argparse.Namespace) -> None:
    # What it needs beyond the runtime is imported only for it.
    from clada.runtime.find_model import find_model
    from clada.runtime.trt.building.build import BuildConfig, build_engine

    config = BuildConfig(
        args.runtime, tuple(args.target or ()), args.kernels, args.max_batch, args.max_prompt, args.capacity
    )
    build_engine(find_model(args.path), args.output, config, progress(args))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "build",
        help="make a TensorRT engine of an artifact",
        description="Make a TensorRT engine of an artifact, with plugins or function bodies, and a record beside it.",
        epilog="What tensorrt measures while it builds is kept in ~/.cache/clada (or $XDG_CACHE_HOME/clada), by "
        "release and GPU, for all models; tensorrt-rtx measures nothing.",
    )
    parser.add_argument("path", type=Path, help="the artifact's .onnx file or folder")
    parser.add_argument(
        "-o", "--output", type=Path, help="the .engine file to write, beside the artifact (default: named as the model)"
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="what builds and runs it: tensorrt for the GPU of this machine, tensorrt-rtx for any RTX GPU, on a "
        "machine with or without one (default: that which is installed, tensorrt first)",
    )
    parser.add_argument(
        "--target",
        nargs="+",
        action="extend",
        metavar="SM",
        help="GPUs to build for with tensorrt-rtx, as sm_86 sm_89 sm_120 (default: all from sm_80 on)",
    )
    parser.add_argument(
        "--kernels",
        choices=TRT_KERNELS,
        default="auto",
        help="what computes the ops: our plugins, for tensorrt alone, or the bodies of the file, at dense speed "
        "(default: plugins with tensorrt where they are installed, else bodies)",
    )
    parser.add_argument("--max-batch", type=int, default=1, help="the most texts at once (default: %(default)s)")
    parser.add_argument("--max-prompt", type=int, help="the most tokens of a prompt (default: 1024, or the capacity)")
    parser.add_argument(
        "--capacity", type=int, help="the most tokens of a text (default: 4096, or the model's context)"
    )
    add_progress_options(parser)
    parser.set_defaults(run=_run)
