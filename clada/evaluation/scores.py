"""Scores of one token's prediction: against the actual token, and against the dense model's prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.evaluation.subject import Floats

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenScores:
    """Scores of T predictions.

    Args:
        nll: f64[T], -log p of the token that came, in nats.
        dense_nll: The same of the dense model.
        kl: f64[T], KL divergence of the prediction from the dense model's, KL(dense || subject), in nats.
        agrees: bool[T], whether both find the same token likeliest.
        correct: bool[T], whether the likeliest token came.
        dense_correct: The same of the dense model.
    """

    nll: Floats
    dense_nll: Floats
    kl: Floats
    agrees: Bools
    correct: Bools
    dense_correct: Bools


def log_softmax(logits: Any) -> Floats:
    """Logarithms of the probabilities, f64[..., V], of logits [..., V]."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_likelihoods(logits: Any, tokens: Sequence[int]) -> Floats:
    """Log p of each token, f64[T] in nats, under logits [T, V]."""
    return log_softmax(logits)[np.arange(len(tokens)), np.asarray(tokens)]


def token_scores(logits: Any, dense_logits: Any, tokens: Sequence[int]) -> TokenScores:
    """Score predictions.

    Args:
        logits: [T, V] of the subject.
        dense_logits: [T, V] of the dense model, for the same positions.
        tokens: The T tokens that came.
    """
    ours, dense = log_softmax(logits), log_softmax(dense_logits)
    at, came = np.arange(len(tokens)), np.asarray(tokens)
    likeliest, dense_likeliest = ours.argmax(axis=-1), dense.argmax(axis=-1)
    return TokenScores(
        nll=-ours[at, came],
        dense_nll=-dense[at, came],
        kl=(np.exp(dense) * (dense - ours)).sum(axis=-1),
        agrees=likeliest == dense_likeliest,
        correct=likeliest == came,
        dense_correct=dense_likeliest == came,
    )
