"""Terminal input and output: prompts from files, generated text as it comes."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clada.errors import CladaError
from clada.runtime.generation import Piece
from clada.runtime.status_line import Room, dimmed, live_title, on_terminal, status
from clada.runtime.telemetry import MeanStats, TokenStats, mean_stats

STANDARD_INPUT = "-"
# Bytes of a prompt: more than any context holds.
_LONGEST_PROMPT = 1 << 26
# Tokens that a live status is of.
_RECENT = 16
# A terminal takes these as commands; it shows pictures of them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


def read_prompt(name: str) -> str:
    """Read the text of a file, or of standard input.

    Raises:
        CladaError: It cannot be read, is not UTF-8 text, or is far too long.
    """
    where = "standard input" if name == STANDARD_INPUT else f"the prompt file {name}"
    try:
        if name != STANDARD_INPUT:
            with Path(name).open("rb") as file:
                content = file.read(_LONGEST_PROMPT + 1)
        elif sys.stdin is None:
            raise CladaError("there is no standard input")
        else:
            content = sys.stdin.buffer.read(_LONGEST_PROMPT + 1)
    except OSError as error:
        raise CladaError(f"cannot read {where}: {error.strerror or error}") from error
    if len(content) > _LONGEST_PROMPT:
        raise CladaError(f"{where} has more than {_LONGEST_PROMPT:,} bytes: no context holds so many")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CladaError(f"{where} is not UTF-8 text: byte {error.start} is invalid") from error


@dataclass
class Shown:
    """Text that was generated and shown.

    Args:
        text: All of it.
        count: Number of its tokens, without the one by which the model ends it.
        finish: As of Piece; None where it was interrupted.
        rows: Each token's text and what it was given.
    """

    text: str = ""
    count: int = 0
    finish: str | None = None
    rows: list[tuple[str, TokenStats]] = field(default_factory=list)


def _stats_row(label: str, stats: TokenStats | MeanStats) -> str:
    signals = f"{stats.surprisal:9.3f} {stats.entropy:9.3f} {stats.load:6.2f}"
    return f"{label:<20} {signals} {stats.active_fraction:8.1%} {stats.read_fraction:8.1%}"


def show(pieces: Iterable[Piece], show_stats: bool, *, room: Room, interruptible: bool = False) -> Shown:
    """Print text as it comes, then, if requested, a table on stderr; there, on a terminal, its status too.

    Args:
        pieces: The text.
        show_stats: Whether to print the table.
        room: Of the text.
        interruptible: Whether Ctrl-C ends the text, and not the program.
    """
    shown = Shown()
    visible = sys.stdout is not None and sys.stdout.isatty()
    started = first = time.perf_counter()

    def line(count: int) -> str:
        """Status of the last tokens."""
        stats = [stats for _, stats in shown.rows[-count:]]
        seconds = time.perf_counter() - first
        return status(stats, (len(shown.rows) - 1) / seconds if seconds else 0.0, shown.count, room)

    try:
        with live_title() as title:
            for piece in pieces:
                shown.text += piece.text
                shown.finish = piece.finish
                shown.count += piece.finish != "end"
                if piece.stats is not None:
                    first = first if shown.rows else time.perf_counter()
                    shown.rows.append((repr(piece.text), piece.stats))
                print(piece.text.translate(_PICTURES) if visible else piece.text, end="", flush=True)
                if shown.rows:
                    title(lambda: line(_RECENT))
    except KeyboardInterrupt:
        if not interruptible:
            raise
        shown.finish = None
    seconds = time.perf_counter() - started
    print(flush=True)
    if show_stats and shown.rows:
        _print_table(shown.rows, seconds)
    elif shown.rows and on_terminal():
        print(dimmed(line(len(shown.rows))), file=sys.stderr, flush=True)
    return shown


def _print_table(rows: list[tuple[str, TokenStats]], seconds: float) -> None:
    header = f"{'token':<20} {'surprisal':>9} {'entropy':>9} {'load':>6} {'active':>8} {'read':>8}"
    lines = [header, *(_stats_row(label, stats) for label, stats in rows)]
    lines.append(_stats_row("mean", mean_stats([stats for _, stats in rows])))
    lines.append(f"{len(rows)} tokens in {seconds:.2f} s, prompt included: {len(rows) / seconds:.1f} tokens/s")
    print("\n".join(lines), file=sys.stderr)
