"""Shows generated text on a terminal as it comes."""

import sys
import time
from collections.abc import Iterable

from clada.runtime.generation import Piece
from clada.runtime.telemetry import MeanStats, TokenStats, mean_stats


def _stats_row(label: str, stats: TokenStats | MeanStats) -> str:
    return f"{label:<20} {stats.surprisal:9.3f} {stats.entropy:9.3f} {stats.load:6.2f} {stats.active_fraction:8.1%}"


def show(pieces: Iterable[Piece], show_stats: bool) -> str:
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
