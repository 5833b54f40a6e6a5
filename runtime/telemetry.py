"""Telemetry of a decode step."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class TokenStats:
    """Difficulty and cost of one token, measured in the graph while the token was read.

    Args:
        surprisal: -log p of the token under the model's own distribution, in nats: that of its logits as they are,
            before temperature, penalties and what sampling leaves out.
        entropy: Entropy of that distribution, in nats.
        load: The load signal, in [0, 1].
        active_fraction: Share of all layers' neurons that were computed; of an artifact that skips inputs, the share of
            all products' inputs that were kept.
        read_fraction: Share of the feed-forward weights' bytes that were read; of an artifact that skips inputs, the
            share of all weights' bytes.
        active: Neurons computed by layer, or inputs kept by product.
        pool: Neurons that a layer was allowed, or the inputs of a product.
    """

    surprisal: float
    entropy: float
    load: float
    active_fraction: float
    read_fraction: float
    active: tuple[int, ...]
    pool: tuple[int, ...]


@dataclass(frozen=True)
class MeanStats:
    """Means of TokenStats over tokens."""

    surprisal: float
    entropy: float
    load: float
    active_fraction: float
    read_fraction: float


def mean_stats(stats: Sequence[TokenStats]) -> MeanStats:
    """Mean of each figure over tokens; NaN where there are none."""
    names = [field.name for field in fields(MeanStats)]
    columns = {name: [getattr(s, name) for s in stats] for name in names}
    return MeanStats(**{name: float(np.mean(values)) if values else float("nan") for name, values in columns.items()})
