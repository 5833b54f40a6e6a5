"""The `clada serve` command."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from clada.command_line import add_quiet, utf8_text
from clada.errors import CladaError
from clada.runtime.generation_command import add_session_options, open_session

if TYPE_CHECKING:
    from clada.server.gate import Access

_KEY_VARIABLE = "CLADA_API_KEY"
_LONGEST_KEY = 4096


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `serve` to `clada`'s commands."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP, as OpenAI's clients send them",
        description="Answer requests over HTTP, as OpenAI's clients send them, at this machine alone unless --host "
        "says otherwise; a page to chat with is at /. Texts of all requests are read together. Ctrl-C stops it.",
    )
    parser.add_argument("path", type=Path, help="the artifact's .onnx file or folder, or an .engine built from it")
    parser.add_argument(
        "--host", type=utf8_text, default="127.0.0.1", help="the address to listen at (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8080, help="0 is any that is free (default: %(default)s)")
    parser.add_argument("--name", type=utf8_text, help="the model's name in requests (default: that of its folder)")
    add_session_options(parser)
    own = parser.add_argument_group("texts")
    own.add_argument("--slots", type=int, default=8, metavar="N", help="texts read at a time (default: %(default)s)")
    own.add_argument("--queue", type=int, default=64, metavar="N", help="texts that may wait (default: %(default)s)")
    own.add_argument("--max-prompt-tokens", type=int, metavar="N", help="of a prompt (default: what the context holds)")
    own.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: what the context holds)")
    own.add_argument(
        "--prefix-tokens",
        type=int,
        default=8192,
        metavar="N",
        help="tokens of earlier prompts that are kept, so that what begins alike is read once (default: %(default)s)",
    )
    access = parser.add_argument_group("access", f"Without a key in {_KEY_VARIABLE} or --api-key-file anyone may ask.")
    access.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file whose text is the key to ask for")
    access.add_argument(
        "--no-api-key", action="store_true", help="have anyone who reaches --host ask, where that is not this machine"
    )
    add_quiet(parser, "no notes")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from clada.server.limits import Limits
    from clada.server.serving import Serving, serve

    _check(args)
    access = _access(args)
    session = open_session(args)
    name = args.name or session.folder.resolve().name
    options = Serving(
        name,
        args.host,
        args.port,
        access,
        args.slots,
        args.queue,
        args.prefix_tokens,
        Limits(prompt=args.max_prompt_tokens, output=args.max_tokens),
    )
    serve(session, options, lambda address, _: print(f"serving {name} at {address}", flush=True))


def _check(args: argparse.Namespace) -> None:
    least = {"slots": 1, "queue": 0, "max_prompt_tokens": 1, "max_tokens": 1, "prefix_tokens": 0, "port": 0}
    for name, value in least.items():
        given = getattr(args, name)
        if given is not None and given < value:
            raise CladaError(f"--{name.replace('_', '-')} is {given}; it must be {value} or more")
    if args.cuda_graph and args.slots > 1:
        raise CladaError(f"--cuda-graph is for one text at a time, and --slots is {args.slots}: add --slots 1")
    if args.port > 65535:
        raise CladaError(f"--port is {args.port}; it must be 65535 or less")


def _access(args: argparse.Namespace) -> "Access":
    """Whom to answer.

    Raises:
        CladaError: The key cannot be read, or other machines could ask without one.
    """
    from clada.server.gate import LOOPBACK, Access

    key = _key(args.api_key_file)
    here = args.host in LOOPBACK
    if key is None and not here and not args.no_api_key:
        raise CladaError(
            f"--host is {args.host}, where other machines may ask: give a key by {_KEY_VARIABLE} or --api-key-file, or "
            "--no-api-key"
        )
    if key is not None and args.no_api_key:
        raise CladaError("--no-api-key is given, and a key too: leave one of them out")
    return Access(key, LOOPBACK if here else None)


def _key(path: Path | None) -> str | None:
    """API key, of a file or else of the environment; None where there is none."""
    source = f"the environment's {_KEY_VARIABLE}" if path is None else str(path)
    try:
        key = (
            os.environ.get(_KEY_VARIABLE)
            if path is None
            else path.read_text("utf-8", errors="strict")[: _LONGEST_KEY + 1]
        )
    except UnicodeDecodeError as error:
        raise CladaError(f"{source} is not UTF-8 text") from error
    if key is None:
        return None
    key = key.strip()
    if not key or len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise CladaError(f"{source} holds no key: it must be 1 to {_LONGEST_KEY} printable ASCII characters")
    return key
