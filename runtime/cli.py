"""The `clada` command: run, chat, inspect, build, and what other parts of the project add."""

import argparse
import sys
import time
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from clada.plugins.errors import CladaError, exit_code
from clada.plugins.onnxruntime import DEVICES, WEIGHTS
from clada.runtime.artefact import open_artefact, open_artefact_of_engine
from clada.runtime.building.command import add_parser as add_build_parser
from clada.runtime.engine_record import ENGINE_SUFFIX, read_record
from clada.runtime.generation import GenerationConfig, Piece
from clada.runtime.inspection import engine_lines, inspection_lines
from clada.runtime.sampling import SamplingConfig
from clada.runtime.session import Session
from clada.runtime.telemetry import MeanStats, TokenStats, mean_stats


def _add_generation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="the artefact's .onnx file, or an .engine built from it")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--stop", action="append", default=[], help="a string that ends the text; may be repeated")
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


def _generation_config(args: argparse.Namespace) -> GenerationConfig:
    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, args.repetition_penalty, args.seed)
    return GenerationConfig(args.max_new_tokens, tuple(args.stop), sampling)


def _session(args: argparse.Namespace) -> Session:
    return Session(
        args.path, threads=args.threads, weights=args.weights, device=args.device, cuda_graph=args.cuda_graph
    )


def _stats_row(label: str, stats: TokenStats | MeanStats) -> str:
    return f"{label:<20} {stats.surprisal:9.3f} {stats.entropy:9.3f} {stats.load:6.2f} {stats.active_fraction:8.1%}"


def _show(pieces: Iterable[Piece], show_stats: bool) -> str:
    """Print text as it comes, then, if asked, a table on stderr; returns the text."""
    rows: list[tuple[str, TokenStats]] = []
    texts: list[str] = []
    started = time.perf_counter()
    for piece in pieces:
        print(piece.text, end="", flush=True)
        texts.append(piece.text)
        if piece.stats is not None:
            rows.append((repr(piece.text), piece.stats))
    seconds = time.perf_counter() - started
    print()
    if show_stats and rows:
        header = f"{'token':<20} {'surprisal':>9} {'entropy':>9} {'load':>6} {'active':>8}"
        lines = [header, *(_stats_row(label, stats) for label, stats in rows)]
        lines.append(_stats_row("mean", mean_stats([stats for _, stats in rows])))
        lines.append(f"{len(rows)} tokens in {seconds:.2f} s, prompt included: {len(rows) / seconds:.1f} tokens/s")
        print("\n".join(lines), file=sys.stderr)
    return "".join(texts)


def _run(args: argparse.Namespace) -> None:
    config = _generation_config(args)
    session = _session(args)
    _show(session.stream(args.prompt, config), args.stats)


def _chat(args: argparse.Namespace) -> None:
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
        answer = _show(session.stream(session.encode_chat(messages), config), args.stats)
        messages.append({"role": "assistant", "content": answer})


def _inspect(args: argparse.Namespace) -> None:
    if args.path.suffix == ENGINE_SUFFIX:
        lines = engine_lines(open_artefact_of_engine(args.path), read_record(args.path))
    else:
        lines = inspection_lines(open_artefact(args.path))
    print("\n".join(lines))


def _add_other_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", asked: str) -> None:
    """Add the commands that other parts of the project register; only the one asked for is imported."""
    for entry in entry_points(group="clada.commands"):
        extra = ", ".join(entry.extras)
        if entry.name != asked:
            commands.add_parser(entry.name, help=f"needs clada[{extra}]")
            continue
        try:
            entry.load()(commands)
        except ModuleNotFoundError as error:
            raise CladaError(f"`clada {asked}` needs {error.name}: pip install 'clada[{extra}]'") from error


def _parser(asked: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clada", description="Run dynamically sparse language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="continue a prompt")
    _add_generation_options(run)
    run.add_argument("--prompt", required=True, help="the text to continue")
    run.set_defaults(run=_run)

    chat = commands.add_parser("chat", help="hold a conversation")
    _add_generation_options(chat)
    chat.add_argument("--system", help="a system message to begin with")
    chat.set_defaults(run=_chat)

    inspect = commands.add_parser("inspect", help="show layers, thresholds, sparsity, ops and sizes")
    inspect.add_argument("path", type=Path, help="the artefact's .onnx file, or an .engine")
    inspect.set_defaults(run=_inspect)

    add_build_parser(commands)
    _add_other_commands(commands, asked)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv

    def command() -> None:
        args = _parser(asked=words[0] if words else "").parse_args(words)
        warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
        args.run(args)

    return exit_code(command)
