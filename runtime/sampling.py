"""Chooses the next token from logits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.plugins.errors import CladaError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    Args:
        temperature: Divides the logits; 0 is greedy.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the fewest tokens whose probabilities sum to at least p; 1 keeps all.
        repetition_penalty: Divides positive and multiplies negative logits of tokens already in the text
            (Keskar et al. 2019); 1 is none.
        seed: Of the random numbers; the same seed gives the same text, alone or in a batch.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise CladaError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise CladaError(f"top_k is {self.top_k}; it must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise CladaError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise CladaError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")
        if self.seed < 0:
            raise CladaError(f"seed is {self.seed}; it must be 0 or more")


def probabilities(logits: npt.NDArray[Any], seen: npt.NDArray[np.int64], config: SamplingConfig) -> Floats:
    """The distribution that the next token is drawn from; greedy puts all on the most likely.

    Args:
        logits: [V].
        seen: Ids of the tokens in the text so far.
        config: How to choose.

    Returns:
        f64[V], summing to 1.

    Raises:
        CladaError: The logits hold a NaN.
    """
    z = logits.astype(np.float64)
    if np.isnan(z).any():
        raise CladaError("the model's logits are NaN: the weights or the dtype do not hold the activations")
    if config.repetition_penalty != 1:
        repeated = np.unique(seen)
        penalised = z[repeated]
        z[repeated] = np.where(
            penalised > 0, penalised / config.repetition_penalty, penalised * config.repetition_penalty
        )
    if config.temperature == 0:
        p = np.zeros_like(z)
        p[int(z.argmax())] = 1
        return p
    z = z / config.temperature
    if 0 < config.top_k < len(z):
        z[z < np.partition(z, -config.top_k)[-config.top_k]] = -np.inf
    p = np.exp(z - z.max())
    p /= p.sum()
    if config.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= config.top_p]] = 0
        p /= p.sum()
    return p


def sample(
    logits: npt.NDArray[Any], seen: npt.NDArray[np.int64], config: SamplingConfig, rng: np.random.Generator
) -> int:
    """Draw the next token; arguments as of `probabilities`, and a source of randomness."""
    p = probabilities(logits, seen, config)
    if config.temperature == 0:
        return int(p.argmax())
    return int(rng.choice(len(p), p=p))
