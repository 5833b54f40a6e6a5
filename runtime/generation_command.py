"""The `clada run` and `clada chat` commands."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clada.command_line import add_bytes, add_quiet, note, utf8_text
from clada.errors import CladaError
from clada.ops.devices import DEVICES, WEIGHTS

if TYPE_CHECKING:
    from clada.runtime.generation import GenerationConfig
    from clada.runtime.sampling import SamplingConfig
    from clada.runtime.session import Session

# What `run` generates at most where nobody says: a prompt's continuation has no end of its own.
_RUN_TOKENS = 128
# Options that choose among likely tokens, which greedy does not.
_CHOOSING = ("temperature", "top_k", "top_p", "min_p")
_SAMPLING = (*_CHOOSING, "repetition_penalty", "seed")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="the artifact's .onnx file or folder, or an .engine built from it")
    parser.add_argument(
        "--stop", action="append", default=[], type=utf8_text, help="a string that ends the text; may be repeated"
    )
    parser.add_argument(
        "--stop-token", action="append", default=[], type=int, metavar="ID", help="a token that ends it, likewise"
    )
    own = parser.add_argument_group("sampling", "Where not given, as the model's generation_config.json says.")
    own.add_argument("--greedy", action="store_true", help="take the likeliest token, whatever the model's settings")
    own.add_argument("--temperature", type=float, help="0 is greedy")
    own.add_argument("--top-k", type=int, metavar="K", help="sample from the k likeliest tokens; 0 is all")
    own.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest that sum to p; 1 is all")
    own.add_argument("--min-p", type=float, metavar="P", help="sample from those at least p times the likeliest")
    own.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is none")
    own.add_argument("--seed", type=int, metavar="N", help="of the random numbers (default: 0)")
    add_session_options(parser)
    parser.add_argument("--stats", action="store_true", help="show surprisal, entropy, load and neurons a token")
    add_quiet(parser, "no notes")


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `open_session`, but for the path."""
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 lets ONNX Runtime choose (default)")
    parser.add_argument(
        "--weights",
        choices=[kind for kind in WEIGHTS if kind],
        default="",
        help="what to hold a float32 model's feed-forward weights as; as they are where not given",
    )
    add_bytes(parser)
    parser.add_argument("--device", choices=DEVICES, help="where to run an .onnx file (default: cpu)")
    parser.add_argument(
        "--cuda-graph", action="store_true", help="capture decode in CUDA graphs (with --device cuda, of float16)"
    )


def add_run_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `run` to `clada`'s commands."""
    parser = commands.add_parser("run", help="continue a prompt")
    _add_options(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", type=utf8_text, help="the text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="a file with the text, taken as it is; - is standard input"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"the most tokens to generate (default: {_RUN_TOKENS})"
    )
    parser.set_defaults(run=_run)


def add_chat_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `chat` to `clada`'s commands."""
    parser = commands.add_parser(
        "chat",
        help="hold a conversation",
        description="Hold a conversation: a question a line. Ctrl-C stops an answer; an empty line or Ctrl-D ends the "
        "conversation. Of one that outgrows the context, the oldest questions and answers are left out. "
        "/clear begins another, /load FILE asks what a file says, /bytes SHARE sets how much is read.",
    )
    _add_options(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="the most tokens of an answer (default: what the context holds)"
    )
    parser.add_argument("--system", type=utf8_text, help="a system message to begin with")
    parser.add_argument(
        "--template-arg",
        action="append",
        default=[],
        type=utf8_text,
        metavar="NAME=VALUE",
        help="an argument of the model's chat template, as enable_thinking=false: JSON, else a text; may be repeated",
    )
    parser.add_argument(
        "--tools",
        type=Path,
        metavar="FILE",
        help="a JSON list of functions that the model is told of, as OpenAI's API takes them; its calls are shown, and "
        "nothing carries them out",
    )
    parser.set_defaults(run=_chat)


def _run(args: argparse.Namespace) -> None:
    from clada.runtime.status_line import Room
    from clada.runtime.terminal import read_prompt, show

    _check(args)
    prompt = args.prompt if args.prompt_file is None else read_prompt(args.prompt_file)
    session = open_session(args)
    config = _config(args, session, args.max_new_tokens or _RUN_TOKENS)
    tokens = session.encode(prompt)
    shown = show(session.stream(tokens, config), args.stats, room=Room(len(tokens), session.context_length))
    if shown.finish == "length" and args.max_new_tokens is None and not args.quiet and shown.count == _RUN_TOKENS:
        note(f"cut after {_RUN_TOKENS} tokens; --max-new-tokens allows more")


def _chat(args: argparse.Namespace) -> None:
    from clada.runtime.chat.tools_file import read_tools
    from clada.runtime.conversation import hold_conversation

    _check(args)
    template_args = _template_args(args.template_arg)
    tools = None if args.tools is None else read_tools(args.tools)
    session = open_session(args)
    config = _config(args, session, args.max_new_tokens)
    hold_conversation(
        session,
        config,
        args.system,
        tools=tools,
        template_args=template_args,
        show_stats=args.stats,
        quiet=args.quiet,
    )


def _template_args(given: list[str]) -> dict[str, Any]:
    from clada.runtime.chat.template_arguments import parse_argument

    found: dict[str, Any] = {}
    for name, value in map(parse_argument, given):
        if name in found:
            raise CladaError(f"--template-arg gives {name} twice: leave one of them out")
        found[name] = value
    return found


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _check(args: argparse.Namespace) -> None:
    """Raise CladaError for invalid options before a model is loaded.

    Raises:
        CladaError: One does not.
    """
    from clada.runtime.generation import GenerationConfig
    from clada.runtime.sampling import SamplingConfig

    SamplingConfig(**_given(args, _SAMPLING))
    GenerationConfig(args.max_new_tokens, args.stop, stop_tokens=args.stop_token)
    if args.greedy and (choosing := _given(args, _CHOOSING)):
        option = next(iter(choosing)).replace("_", "-")
        raise CladaError(f"--greedy takes the likeliest token, and --{option} is given: leave one of them out")


def _sampling(args: argparse.Namespace, own: "SamplingConfig") -> "SamplingConfig":
    """Sampling settings: those of the options, else the model's own."""
    from clada.runtime.sampling import SamplingConfig

    given = _given(args, _SAMPLING)
    sampling = replace(SamplingConfig() if args.greedy else own, **given)
    choosing = _given(args, _CHOOSING)
    if args.quiet:
        return sampling
    if sampling.temperature == 0 and any(value for name, value in choosing.items() if name != "temperature"):
        note("the temperature is 0: the likeliest token is taken, and no other option has a say")
    elif sampling.temperature and not choosing:
        usual = asdict(SamplingConfig())
        settings = [f"{name} {value}" for name, value in asdict(sampling).items() if value != usual[name]]
        note(f"sampling as the model's generation_config.json says, {', '.join(settings)}; --greedy turns it off")
    return sampling


def _config(args: argparse.Namespace, session: "Session", tokens: int | None) -> "GenerationConfig":
    from clada.runtime.generation import GenerationConfig

    sampling = _sampling(args, session.default_sampling)
    return GenerationConfig(tokens, args.stop, sampling, args.stop_token)


def open_session(args: argparse.Namespace) -> "Session":
    """Open the model that a command line names.

    Raises:
        CladaError: As of Session.
    """
    from clada.runtime.find_model import find_model
    from clada.runtime.session import Session

    return Session(
        find_model(args.path),
        threads=args.threads,
        weights=args.weights,
        bytes=args.bytes,
        device=args.device,
        cuda_graph=args.cuda_graph,
    )
