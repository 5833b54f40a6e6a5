"""Pools, the global sparsity: the neurons a text may use, chosen from its prompt and updated as it goes on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from clada.contract.manifest import PoolSection
from clada.errors import CladaError

Floats = npt.NDArray[np.floating[Any]]
Masks = list[npt.NDArray[np.bool_]]

# Tokens that a score reaches back: what was used longer ago fades, so that a pool follows its text.
MEMORY_TOKENS = 256
# The most often that a pool is chosen anew, in tokens.
REFRESH_TOKENS = 16
# The longest that a pool stays closed, in tokens: text of a new kind that is easy to predict raises no load.
CLOSED_TOKENS = 64
# Beyond any prior or weight: those of a layer are shares, or have a mean of 1.
_LARGEST = 1 << 31


@dataclass(frozen=True)
class PoolPolicy:
    """Rules by which pools are chosen.

    Args:
        sizes: For each layer, how many neurons a pool holds.
        prior_tokens: Number of tokens of its own text that weigh as much as the prior; infinite for the prior alone.
        prior: f32[F] for each layer, the mean score of a token of calibration text.
        weight: f32[F] for each layer, what a neuron's score counts for.
    """

    sizes: list[int]
    prior_tokens: float
    prior: list[Floats]
    weight: list[Floats]


class RunningScore(Protocol):
    """Recent contribution of each neuron, f32[B, F] for each layer, stored where a model keeps its state."""

    def __iter__(self) -> Iterator[Floats]:
        """The layers' scores, in this process's memory."""

    def add(self, used: Any, masks: Masks, fade: Floats, inside: Floats, outside: Floats) -> None:
        """Add one token per text.

        Args:
            used: The token's scores, as the model puts them out.
            masks: bool[B, F] for each layer.
            fade: f32[B, 1], what the score is multiplied by first.
            inside: f32[B, 1], what the token's score counts for where the mask holds.
            outside: f32[B, 1], what it counts for elsewhere.
        """


class HostScore(list[Floats]):
    """A running score in NumPy arrays."""

    def add(self, used: Sequence[Floats], masks: Masks, fade: Floats, inside: Floats, outside: Floats) -> None:
        """See RunningScore; `used` is f32[B, F] for each layer."""
        self[:] = [
            score * fade + share * np.where(mask, inside, outside)
            for score, share, mask in zip(self, used, masks, strict=True)
        ]


@dataclass
class Pools:
    """Pools of a batch of texts, and the state from which they are chosen.

    Args:
        masks: bool[B, F] for each layer; replaced, never written to.
        score: Recent contribution of each neuron.
        since_opened: i64[B], tokens read since the pool was open last.
        since_chosen: i64[B], tokens read since the pool was chosen.
        evidence: bool[B], whether the pool was open since it was chosen.
    """

    masks: Masks
    score: RunningScore
    since_opened: npt.NDArray[np.int64]
    since_chosen: npt.NDArray[np.int64]
    evidence: npt.NDArray[np.bool_]


def _masks(policy: PoolPolicy, score: Iterable[Floats]) -> Masks:
    masks: Masks = []
    for used, prior, weight, size in zip(score, policy.prior, policy.weight, policy.sizes, strict=True):
        if np.isinf(policy.prior_tokens):
            blended = np.broadcast_to(prior * weight, used.shape)
        else:
            blended = (used + policy.prior_tokens * prior) * weight
        best = np.argpartition(-blended, size - 1, axis=-1)[:, :size]
        mask = np.zeros(used.shape, np.bool_)
        np.put_along_axis(mask, best, True, axis=-1)
        masks.append(mask)
    return masks


def choose_pools(
    policy: PoolPolicy,
    score: Sequence[Floats],
    tokens: npt.NDArray[Any],
    keep: Callable[[list[Floats]], RunningScore] = HostScore,
) -> Pools:
    """Choose the pools after a prompt.

    Args:
        policy: Policy of the pools.
        score: f32[B, F] for each layer, summed over the prompt.
        tokens: [B], the prompts' lengths, which must be positive.
        keep: Makes the running score that is brought up to date from here on.
    """
    # A long prompt weighs no more than what memory holds of it.
    kept = np.minimum(1, MEMORY_TOKENS / tokens).astype(np.float32)
    score = [used * kept[:, None] for used in score]
    nothing = np.zeros(len(tokens), np.int64)
    return Pools(_masks(policy, score), keep(score), nothing, nothing.copy(), nothing > 0)


def overdue(pools: Pools, reanalysis_load: float) -> npt.NDArray[np.bool_]:
    """Whether each pool bool[B] must be open for the next token, whatever its load; never where no load opens it.

    Args:
        pools: Pools of the texts so far.
        reanalysis_load: The load that opens a pool; above 1 where none does.
    """
    return (pools.since_opened >= CLOSED_TOKENS - 1) & (reanalysis_load <= 1)


def update_pools(
    policy: PoolPolicy,
    pools: Pools,
    used: Any,
    opened: npt.NDArray[np.bool_],
    alive: npt.NDArray[np.bool_],
) -> None:
    """Add one token per text, in place, and choose pools anew where there is new evidence.

    A closed pool tells nothing of the neurons outside of it. Where it was open, what those contributed stands for all
    tokens since it was open last.

    Args:
        policy: Policy of the pools.
        pools: Pools to update.
        used: The token's scores, as the running score takes them: f32[B, F] for each layer, or what a device holds.
        opened: bool[B], whether the pool was open for it.
        alive: bool[B], False where the token is padding.
    """
    since_opened = pools.since_opened + alive
    fade = np.where(alive, 1 - 1 / MEMORY_TOKENS, 1)
    stands_for = np.where(opened & alive, since_opened, 0)
    fade, inside, outside = (factor.astype(np.float32)[:, None] for factor in (fade, alive, stands_for))
    # First what may fail, on a device: the pools are then as they were.
    pools.score.add(used, pools.masks, fade, inside, outside)
    pools.since_opened = np.where(opened & alive, 0, since_opened)
    pools.since_chosen = pools.since_chosen + alive
    pools.evidence = pools.evidence | (opened & alive)
    due = pools.evidence & (pools.since_chosen >= REFRESH_TOKENS)
    if due.any():
        chosen = _masks(policy, pools.score)
        pools.masks = [np.where(due[:, None], new, old) for new, old in zip(chosen, pools.masks, strict=True)]
        pools.since_chosen[due] = 0
        pools.evidence[due] = False


def read_pool_policy(section: PoolSection, content: bytes, path: Path, neurons: Sequence[int]) -> PoolPolicy:
    """Read a pool policy from the manifest's section and the file of its tensors.

    Args:
        section: Section of a checked manifest.
        content: Content of the file.
        path: Path of the file, for error messages.
        neurons: Number of neurons of each layer.

    Raises:
        CladaError: The file does not hold what it must.
    """
    layers = range(len(neurons))
    try:
        loaded = load(content)
        prior, weight = [loaded[prior_name(n)] for n in layers], [loaded[weight_name(n)] for n in layers]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CladaError(f"{path} does not hold the pools that the manifest tells of: {error}; export again") from error
    if any(p.shape != (n,) or w.shape != (n,) for p, w, n in zip(prior, weight, neurons, strict=True)):
        raise CladaError(f"{path} is not of layers of {list(neurons)} neurons; export again")
    for name, tensor in loaded.items():
        # Written so that NaN is out of range too.
        if tensor.dtype != np.float32 or not ((tensor >= 0) & (tensor <= _LARGEST)).all():
            raise CladaError(f"{path}: {name} holds values that are not float32 from 0 to {_LARGEST}; export again")
    prior_tokens = float("inf") if section.prior_tokens is None else section.prior_tokens
    return PoolPolicy(list(section.sizes), prior_tokens, prior, weight)


def prior_name(layer: int) -> str:
    """Name of the tensor f32[F] that holds a token's mean score on calibration text."""
    return f"prior.{layer}"


def weight_name(layer: int) -> str:
    """Name of the tensor f32[F] that holds the weight of a neuron's score."""
    return f"weight.{layer}"
