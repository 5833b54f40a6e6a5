"""Options shared by several commands: checkpoints, and calibration text."""

import argparse
from pathlib import Path
from typing import Any

from clada.exporter.defaults import CALIBRATION_TOKENS, READING_OPTIONS

MODEL_HELP = "a checkpoint's folder, a GGUF file, or a Hugging Face model id"


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a checkpoint is read, which `checkpoint_options` takes."""
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter to merge into the model's weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")
    parser.add_argument("--allow-pickle", action="store_true", help="read pickle weights; they can run code too")


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the calibration text."""
    parser.add_argument(
        "--calibration-data",
        type=Path,
        help="what to calibrate on: a text file, or a JSONL file, each line an object with a text or with the messages "
        "of a conversation (default: Python sources that come with clada)",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=CALIBRATION_TOKENS,
        help="how many tokens of it to use (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which parts of the text are used")


def checkpoint_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `load_model` that `add_checkpoint_options` added."""
    return {name: getattr(args, name) for name in READING_OPTIONS}
