"""What every command of the project does alike: how it parses, how it fails, and how much it says."""

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn, TextIO, cast

from clada.errors import CladaError

_LONGEST_MESSAGE = 1000  # characters; a path alone may have thousands


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line; its subcommands' parsers do too."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"error: {one_line(message)}; see `{self.prog} --help`\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse itself passes over what cannot be written."""
        print(message, end="", file=file or sys.stderr)


def one_line(message: str) -> str:
    """A message as a line for a terminal: no line ends, no control characters, the middle left out of a long one."""
    words = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in words)
    if len(shown) > _LONGEST_MESSAGE:
        half = _LONGEST_MESSAGE // 2
        shown = f"{shown[:half]} … {shown[-half:]}"
    return shown


def utf8_text(value: str) -> str:
    """An argument that is to be text, for `type=`; of a path any bytes will do."""
    try:
        # Bytes that the locale does not know, as ASCII knows no accents, may be UTF-8 all the same.
        return os.fsencode(value).decode() if any("\udc80" <= c <= "\udcff" for c in value) else value
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"byte 0x{error.object[error.start]:02x} in it is not UTF-8 text") from error


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action="version", version=f"clada {version('clada')}")


def add_quiet(parser: argparse.ArgumentParser, what: str = "no progress, no notes") -> None:
    """Add `-q`; `what` is what the command does not say then."""
    parser.add_argument("-q", "--quiet", action="store_true", help=f"say nothing but results and errors: {what}")


def add_bytes(parser: argparse.ArgumentParser) -> None:
    """Add `--bytes`, how much of a model's weights is read; see `Session`."""
    parser.add_argument(
        "--bytes",
        type=float,
        metavar="SHARE",
        help="the share of the weights' bytes that a token reads, of a model exported with --bytes; 1 is dense",
    )


def add_progress_options(parser: argparse.ArgumentParser) -> None:
    """Add `-q` and `-v` to a command that reports its progress by `progress`."""
    add_quiet(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say at each line how long it has taken so far")


def progress(args: argparse.Namespace) -> Callable[[str], None]:
    """Where the lines of progress of a command with those options go."""
    started = time.monotonic()

    def show(line: str) -> None:
        if args.verbose:
            line = f"{time.monotonic() - started:8.1f} s  {line}"
        if not args.quiet:
            print(line, flush=True)

    return show


def run_command(
    parser: Callable[[], argparse.ArgumentParser], words: Sequence[str], called: str, package: Callable[[], str]
) -> int:
    """Parse a command line and run what it asks for.

    Args:
        parser: Makes the parser; its `run` default takes the parsed arguments.
        words: The command line.
        called: What the user calls the command, for an error.
        package: Gives what to install where a module is missing.

    Returns:
        The exit code.
    """

    def command() -> None:
        args = parser().parse_args(words)
        warnings.formatwarning = lambda message, *_, **__: f"note: {one_line(str(message))}\n"
        try:
            with _quietly() if getattr(args, "quiet", False) else contextlib.nullcontext():
                args.run(args)
        except ModuleNotFoundError as error:
            raise CladaError(f"{called} needs {error.name}: pip install '{package()}'") from error

    return exit_code(command)


class _NoTerminal:
    """A stream that says it is no terminal: progress bars are not shown there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_quiet() -> bool:
    """Whether the user wants to be told of mistakes alone."""
    return isinstance(sys.stderr, _NoTerminal)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without notes and progress bars."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(cast(TextIO, _NoTerminal(sys.stderr))):
        warnings.simplefilter("ignore")
        yield


def note(line: str) -> None:
    """Tell the user of something that he may want to know."""
    print(f"note: {one_line(line)}", file=sys.stderr, flush=True)


def complain(line: str) -> None:
    """Tell the user of a mistake after which a command goes on."""
    print(f"error: {one_line(line)}", file=sys.stderr, flush=True)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command: 0 when it ends well, 1 with the mistake on stderr, 130 when interrupted, 141 when nobody reads."""
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that has no arrow in its character set gets a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            command()
        except SystemExit:
            _flush()
            raise
        _flush()
    except CladaError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        return _failed(_system_error(error))
    except MemoryError:
        return _failed("there is not enough memory")
    return 0


def _flush() -> None:
    """Write what is held back now, while a failure can still be told; without standard output there is nothing."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):
        complain(message)
    return 1


def _system_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else f"the system refused: {reason}"


def _discard_output() -> None:
    """Have standard output take anything: Python must not fail again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
