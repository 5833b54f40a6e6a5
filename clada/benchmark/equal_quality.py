"""Speed at equal quality: against each GGUF file, the fastest of ours that is no farther from the checkpoint."""

from collections.abc import Iterator, Sequence

import numpy as np

from clada.benchmark.contender import LLAMA_CPP, OURS
from clada.benchmark.quality import Qualities
from clada.benchmark.report import Row, Table


def _system(row: Row) -> str:
    return row.name.split()[0]


def equal_quality_lines(tables: Sequence[Table], qualities: Qualities) -> list[str]:
    """One line for each GGUF file and each table of decode; none where predictions were not compared."""
    kl = {one.name: one.kl.value for one in qualities.of}
    return [line for table in tables if table.phase == "decode" and kl for line in _lines_of(table, kl)]


def _lines_of(table: Table, kl: dict[str, float]) -> Iterator[str]:
    own = [row for row in table.rows if _system(row) == OURS]
    for theirs in (row for row in table.rows if _system(row) == LLAMA_CPP):
        what = f"after {table.context} tokens, at no more KL than {theirs.name} ({kl[theirs.name]:.4f})"
        near = [row for row in own if kl[row.name] <= kl[theirs.name]]
        if not near:
            yield f"{what}: none of ours"
            continue
        best = min(near, key=lambda row: row.ms or np.inf)
        # Of the rounds, in each of which both were timed.
        faster = float(np.median(np.array(theirs.samples_ms) / np.array(best.samples_ms)))
        yield f"{what}: {best.name} ({kl[best.name]:.4f}) is {faster:.2f}x as fast"
