"""Common behavior of all commands: parsing, failure and verbosity."""

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
from clada.interrupts import interrupted_between_imports

_LONGEST_MESSAGE = 1000  # characters; a path alone may have thousands


class Parser(argparse.ArgumentParser):
    """Parser that reports errors in one line, as do its subcommands' parsers."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"error: {one_line(message)}; see `{self.prog} --help`\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help text and let errors out: the method of argparse ignores failures to write."""
        print(message, end="", file=file or sys.stderr)


def one_line(message: str) -> str:
    """Format a message as one line for a terminal: no line ends or control characters, the middle of a long one cut."""
    words = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in words)
    if len(shown) > _LONGEST_MESSAGE:
        half = _LONGEST_MESSAGE // 2
        shown = f"{shown[:half]} … {shown[-half:]}"
    return shown


def utf8_text(value: str) -> str:
    """Convert an argument that must be text, for `type=`; a path may hold any bytes."""
    try:
        # Bytes that the locale does not know, as ASCII knows no accents, may be UTF-8 all the same.
        return os.fsencode(value).decode() if any("\udc80" <= c <= "\udcff" for c in value) else value
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"byte 0x{error.object[error.start]:02x} in it is not UTF-8 text") from error


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action="version", version=f"clada {version('clada')}")


def add_quiet(parser: argparse.ArgumentParser, what: str = "no progress, no notes") -> None:
    """Add `-q`; `what` names the output that it suppresses."""
    parser.add_argument("-q", "--quiet", action="store_true", help=f"say nothing but results and errors: {what}")


def add_bytes(parser: argparse.ArgumentParser) -> None:
    """Add `--bytes`, the share of a model's weights to read; see `Session`."""
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
    """Return the function that prints lines of progress, given a command's options."""
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
    """Parse a command line and run the command it names.

    Args:
        parser: Makes the parser; its `run` default takes the parsed arguments.
        words: The command line.
        called: Name of the command, for an error.
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
    """Stream that claims not to be a terminal, so that progress bars are not shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_quiet() -> bool:
    """Whether the user wants errors only."""
    return isinstance(sys.stderr, _NoTerminal)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Run without notes and progress bars."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(cast(TextIO, _NoTerminal(sys.stderr))):
        warnings.simplefilter("ignore")
        yield


def note(line: str) -> None:
    """Print a note that the user may want to read."""
    print(f"note: {one_line(line)}", file=sys.stderr, flush=True)


def complain(line: str) -> None:
    """Report an error after which a command goes on."""
    print(f"error: {one_line(line)}", file=sys.stderr, flush=True)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command: 0 on success, 1 with the error on stderr, 130 when interrupted, 141 when nobody reads."""
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that has no arrow in its character set gets a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            with interrupted_between_imports():
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
    """Flush standard output now, while a failure can still be reported; without one there is nothing to flush."""
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
    """Redirect standard output to nowhere, so that Python does not fail again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
