"""Terminal input and output: prompts from files, generated text as it comes."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clada.errors import CladaError
from clada.runtime.generation import Piece
from clada.runtime.telemetry import MeanStats, TokenStats, mean_stats

STANDARD_INPUT = "-"
# Bytes of a prompt: more than any context holds.
_LONGEST_PROMPT = 1 << 26


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


def show(pieces: Iterable[Piece], show_stats: bool, *, interruptible: bool = False) -> Shown:
    """Print text as it comes, then, if requested, a table on stderr.

    Args:
        pieces: The text.
        show_stats: Whether to print the table.
        interruptible: Whether Ctrl-C ends the text, and not the program.
    """
    shown = Shown()
    started = time.perf_counter()
    try:
        for piece in pieces:
            shown.text += piece.text
            shown.finish = piece.finish
            shown.count += piece.finish != "end"
            if piece.stats is not None:
                shown.rows.append((repr(piece.text), piece.stats))
            print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        if not interruptible:
            raise
        shown.finish = None
    seconds = time.perf_counter() - started
    print()
    if show_stats and shown.rows:
        header = f"{'token':<20} {'surprisal':>9} {'entropy':>9} {'load':>6} {'active':>8} {'read':>8}"
        lines = [header, *(_stats_row(label, stats) for label, stats in shown.rows)]
        lines.append(_stats_row("mean", mean_stats([stats for _, stats in shown.rows])))
        lines.append(
            f"{len(shown.rows)} tokens in {seconds:.2f} s, prompt included: {len(shown.rows) / seconds:.1f} tokens/s"
        )
        print("\n".join(lines), file=sys.stderr)
    return shown
