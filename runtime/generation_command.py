"""The `clada run` and `clada chat` commands."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clada.plugins.command_line import add_quiet, utf8_text
from clada.plugins.settings import DEVICES, WEIGHTS

if TYPE_CHECKING:
    from clada.runtime.generation import GenerationConfig
    from clada.runtime.session import Session


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="the artefact's .onnx file or folder, or an .engine built from it")
    parser.add_argument(
        "--stop", action="append", default=[], type=utf8_text, help="a string that ends the text; may be repeated"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens; 0 is all (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest that sum to p; 1 is all")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is none (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0 lets ONNX Runtime choose (default)")
    parser.add_argument(
        "--weights",
        choices=[kind for kind in WEIGHTS if kind],
        default="",
        help="what to hold a float32 model's feed-forward weights as; as they are where not given",
    )
    parser.add_argument("--device", choices=DEVICES, help="where to run an .onnx file (default: cpu)")
    parser.add_argument(
        "--cuda-graph", action="store_true", help="capture decode in CUDA graphs (with --device cuda, of float16)"
    )
    parser.add_argument("--stats", action="store_true", help="show surprisal, entropy, load and neurons a token")
    add_quiet(parser, "no notes")


def add_run_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `run` to `clada`'s commands."""
    parser = commands.add_parser("run", help="continue a prompt")
    _add_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--prompt", required=True, type=utf8_text, help="the text to continue")
    parser.set_defaults(run=_run)


def add_chat_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `chat` to `clada`'s commands."""
    parser = commands.add_parser("chat", help="hold a conversation")
    _add_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--system", type=utf8_text, help="a system message to begin with")
    parser.set_defaults(run=_chat)


def _run(args: argparse.Namespace) -> None:
    from clada.runtime.terminal import show

    config = _generation_config(args)
    session = _session(args)
    show(session.stream(args.prompt, config), args.stats)


def _chat(args: argparse.Namespace) -> None:
    import sys

    from clada.runtime.terminal import show

    config = _generation_config(args)
    session = _session(args)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    # Fails before the first question if the model cannot chat at all.
    session.encode_chat([*messages, {"role": "user", "content": "?"}])
    print("an empty line ends the conversation", file=sys.stderr)
    while True:
        try:
            question = input("> ")
        except EOFError:
            return
        if not question.strip():
            return
        messages.append({"role": "user", "content": question})
        answer = show(session.stream(session.encode_chat(messages), config), args.stats)
        messages.append({"role": "assistant", "content": answer})


def _generation_config(args: argparse.Namespace) -> "GenerationConfig":
    from clada.runtime.generation import GenerationConfig
    from clada.runtime.sampling import SamplingConfig

    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, args.repetition_penalty, args.seed)
    return GenerationConfig(args.max_new_tokens, tuple(args.stop), sampling)


def _session(args: argparse.Namespace) -> "Session":
    from clada.runtime.find_model import find_model
    from clada.runtime.session import Session

    return Session(
        find_model(args.path),
        threads=args.threads,
        weights=args.weights,
        device=args.device,
        cuda_graph=args.cuda_graph,
    )
