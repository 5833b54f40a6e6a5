"""Sampling of the next token from logits."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.errors import CladaError

Floats = npt.NDArray[np.float64]


# What float32 logits can be divided by without loss of their order.
SMALLEST_SCALE, LARGEST_SCALE = 1e-6, 1e6
_LARGEST_INTEGER = 2**64 - 1


@dataclass(frozen=True)
class SamplingConfig:
    """Settings by which the next token is chosen.

    The settings apply in the order that transformers applies them in: repetition penalty, temperature, top-k, top-p,
    min-p. Of tokens that are equally likely, those of lower ids are kept.

    Args:
        temperature: Divides the logits; 0 is greedy.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the fewest tokens whose probabilities sum to at least p; 1 keeps all.
        repetition_penalty: Divides positive and multiplies negative logits of tokens already in the text
            (Keskar et al. 2019); 1 is none. Greedy minds it too.
        seed: Seed of the random numbers. Each text of a batch draws its own, whatever the others draw.
        min_p: Keep the tokens that are at least so likely as a share of the most likely one; 0 keeps all.

    Raises:
        CladaError: A value is not a number, or not one that makes sense.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        scales = f"from {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}"
        for name in ("temperature", "top_p", "repetition_penalty", "min_p"):
            _check_is(name, getattr(self, name), Real, "a number")
        for name in ("top_k", "seed"):
            _check_is(name, getattr(self, name), Integral, "an integer")
        if self.temperature != 0 and not SMALLEST_SCALE <= self.temperature <= LARGEST_SCALE:
            raise CladaError(f"temperature is {self.temperature}; it must be 0 (greedy), or lie {scales}")
        if not 0 <= self.top_k <= _LARGEST_INTEGER:
            raise CladaError(f"top_k is {shown(self.top_k)}; it must be 0 (all) or more, and below 2^64")
        if not 0 < self.top_p <= 1:
            raise CladaError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if not SMALLEST_SCALE <= self.repetition_penalty <= LARGEST_SCALE:
            raise CladaError(f"repetition_penalty is {self.repetition_penalty}; it must lie {scales}, and 1 is none")
        if not 0 <= self.seed <= _LARGEST_INTEGER:
            raise CladaError(f"seed is {shown(self.seed)}; it must be 0 or more, and below 2^64")
        if not 0 <= self.min_p <= 1:
            raise CladaError(f"min_p is {self.min_p}; it must lie in [0, 1]")


def shown(value: int) -> str:
    """Format an integer for an error: Python refuses to write very long ones out."""
    return str(value) if abs(value) <= _LARGEST_INTEGER else f"an integer of {value.bit_length()} bits"


def _check_is(name: str, value: Any, kind: type, called: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CladaError(f"{name} is {value!r}; it must be {called}")


def probabilities(logits: npt.NDArray[Any], seen: npt.NDArray[np.int64], config: SamplingConfig) -> Floats:
    """Distribution that the next token is drawn from; greedy puts all on the most likely.

    Args:
        logits: [V]; tokens of minus infinity are never chosen.
        seen: Ids of the tokens in the text so far; read where there is a repetition penalty.
        config: Sampling settings.

    Returns:
        f64[V], summing to 1.

    Raises:
        CladaError: The logits hold a NaN or plus infinity, or nothing but minus infinity.
    """
    tokens, weights = _candidates(logits, seen, config)
    p = np.zeros(len(logits))
    p[tokens] = weights / weights.sum(dtype=np.float64)
    return p


def sample(
    logits: npt.NDArray[Any], seen: npt.NDArray[np.int64], config: SamplingConfig, rng: np.random.Generator
) -> int:
    """Draw the next token; arguments as of `probabilities`, and a random generator."""
    tokens, weights = _candidates(logits, seen, config)
    return int(tokens[0] if len(tokens) == 1 else tokens[_draw(weights, rng.random())])


def _candidates(
    logits: npt.NDArray[Any], seen: npt.NDArray[np.int64], config: SamplingConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids of the tokens that may be chosen, ascending, and their probabilities as shares of the largest one."""
    z = logits
    if config.repetition_penalty != 1:
        z = logits.astype(np.float32)
        # A token that was seen twice is written twice, with the same value.
        repeated = z[seen]
        z[seen] = np.where(repeated > 0, repeated / config.repetition_penalty, repeated * config.repetition_penalty)
    elif config.temperature != 0:
        z = logits.astype(np.float32, copy=False)
    best = int(z.argmax())
    if not np.isfinite(z[best]):
        raise CladaError(
            f"the largest of the model's logits is {z[best]}: the weights or the dtype do not hold the activations"
        )
    if config.temperature == 0:
        return np.array([best]), np.ones(1, np.float32)
    top, tokens = z[best], None
    if 0 < config.top_k < len(z):
        tokens = np.flatnonzero(_likeliest(z, None, config.top_k, 1))
        z = z[tokens]
    weights = np.exp((z - top) / np.float32(config.temperature))
    kept = None
    if config.top_p < 1:
        kept = _likeliest(z, weights, config.top_p * float(weights.sum()), config.temperature)
    if config.min_p > 0:
        likely = weights >= config.min_p
        kept = likely if kept is None else kept & likely
    if kept is not None:
        places = np.flatnonzero(kept)
        tokens, weights = places if tokens is None else tokens[places], weights[places]
    return np.arange(len(z)) if tokens is None else tokens, weights


# So few are sorted: a step of decode may be as short as sorting all of a large vocabulary.
_FEW = 1024
# After so many, what lies between two borders differs by rounding alone, or is equal: sorted already.
_HALVINGS = 24


def _likeliest(
    z: npt.NDArray[np.float32], weights: npt.NDArray[np.float32] | None, goal: float, step: float
) -> npt.NDArray[np.bool_]:
    """Mask of the largest values: the fewest whose weights sum to a goal, of equal values the first.

    Args:
        z: [N], of which the largest is finite.
        weights: [N]; all 1 where None.
        goal: Above 0.
        step: Distance below the largest value at which the search begins; the result does not depend on it.
    """

    def sum_above(border: Any) -> float:
        larger = z > border
        return float(np.count_nonzero(larger) if weights is None else np.dot(weights, larger))

    # What lies above `high` is too little, what lies above `low` is enough.
    top, high, reached = z.max(), np.float32(np.inf), 0.0
    for steps in (2, 4, 8, 16, 32, np.inf):
        low = top - np.float32(steps * step)
        more = sum_above(low)
        if more >= goal:
            break
        if steps == np.inf:
            return z > low
        high, reached = low, more
    if low == -np.inf:
        low = np.nextafter(z[z > low].min(), low)
    high = min(high, top)
    for _ in range(_HALVINGS):
        if np.count_nonzero((z > low) & (z <= high)) <= _FEW:
            break
        middle = low / 2 + high / 2
        more = sum_above(middle)
        if more >= goal:
            low = middle
        else:
            high, reached = middle, more
    kept = z > high
    left = np.flatnonzero((z > low) & (z <= high))
    left = left[np.argsort(-z[left], kind="stable")]
    share = np.ones(len(left)) if weights is None else weights[left].astype(np.float64)
    kept[left[reached + share.cumsum() - share < goal]] = True
    return kept


_BLOCK = 1024


def _draw(weights: npt.NDArray[np.float32], uniform: float) -> int:
    """Index drawn by a uniform number in [0, 1); its block is found first, as a sum over all takes long."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).cumsum(dtype=np.float64)
    goal = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, goal, side="right")), len(sums) - 1)
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK]
    before = sums[block - 1] if block else 0.0
    place = int(np.searchsorted(before + inside.cumsum(dtype=np.float64), goal, side="right"))
    # By rounding, the goal may lie beyond the last of them.
    return start + min(place, int(np.flatnonzero(inside)[-1]))
