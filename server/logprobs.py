"""Log probabilities of a token and of the likeliest ones, as answers give them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Logprobs:
    """Log probabilities in nats, by the model's own distribution: before temperature, penalties and guides.

    Args:
        chosen: That of the token that was chosen.
        likeliest: Ids of the likeliest tokens with theirs, the likeliest first.
    """

    chosen: float
    likeliest: tuple[tuple[int, float], ...]


def logprobs_of(logits: npt.NDArray[Any], token: int, count: int) -> Logprobs:
    """Log probabilities after logits T[V] of a token, and of the `count` likeliest ones."""
    z = logits.astype(np.float64)
    best = z.max()
    z -= best + np.log(np.exp(z - best).sum())
    count = min(count, len(z))
    top = np.argpartition(-z, count - 1)[:count] if count else np.zeros(0, np.int64)
    top = top[np.argsort(-z[top], kind="stable")]
    return Logprobs(float(z[token]), tuple((int(other), float(z[other])) for other in top))
