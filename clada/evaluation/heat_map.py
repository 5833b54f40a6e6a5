"""Heat map of a generated text, with the telemetry of each token."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from clada.errors import CladaError
from clada.runtime import GenerationConfig, SamplingConfig, Session, TokenStats

_TOKENS = 128
# The lighter part of the map, on which black text is read easily.
_DARKEST = 0.55
_COLORS = colormaps["YlOrBr"]


@dataclass(frozen=True)
class Cell:
    """One token of the text.

    Args:
        text: Text that it completes; empty where a character takes several tokens and is not complete.
        stats: Its telemetry.
        color: Color of its load, as #rrggbb.
    """

    text: str
    stats: TokenStats
    color: str


@dataclass(frozen=True)
class HeatMap:
    """Prompt and continuation, with telemetry.

    Args:
        prompt: As it was given, read densely.
        cells: Tokens of the continuation.
        load: Mean over the cells.
        active_fraction: Mean over the cells.
        model: Name of the artifact's folder and the model's policy.
        tokens_per_second: Of decode; None where that was not measured.
    """

    prompt: str
    cells: tuple[Cell, ...]
    load: float
    active_fraction: float
    model: str
    tokens_per_second: float | None = None


def load_color(load: float) -> str:
    """Color of a load in [0, 1], as #rrggbb; darker is harder."""
    return to_hex(_COLORS(_DARKEST * float(np.clip(load, 0, 1))))


def heat_map(model: Path, prompt: str) -> HeatMap:
    """Continue a prompt greedily, and collect the telemetry.

    Raises:
        CladaError: The artifact cannot be loaded, or the prompt is empty, too long for it or ends the text.
    """
    session = Session(model)
    pieces = session.stream(prompt, GenerationConfig(max_new_tokens=_TOKENS, sampling=SamplingConfig()))
    cells, times = [], []
    for piece in pieces:
        times.append(time.perf_counter())
        if piece.stats is not None:
            cells.append(Cell(piece.text, piece.stats, load_color(piece.stats.load)))
    policy = session.manifest.policy.name
    if not cells:
        raise CladaError(f"the model ends the text right after the prompt {prompt!r}; give another")
    return HeatMap(
        prompt=prompt,
        cells=tuple(cells),
        load=float(np.mean([cell.stats.load for cell in cells])),
        active_fraction=float(np.mean([cell.stats.active_fraction for cell in cells])),
        model=f"{session.folder.name} ({policy})",
        tokens_per_second=(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
    )
