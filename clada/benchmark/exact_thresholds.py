"""Thresholds that keep an exact share of the neurons, whatever the rounding."""

import numpy as np

from clada.ops.record import Array

# How far on its side of the cut a neuron's threshold lies where no other token is in the way; twice that is how far
# the neuron is from it at least.
_FACTOR = 4.0


def exact_share(magnitude: Array, fraction: float) -> tuple[Array, Array]:
    """Thresholds and scales with which each token keeps exactly the share of neurons with its largest activations.

    A threshold lies halfway, in factors, between the tokens that keep its neuron and those that do not. For one token
    that is a factor of 2 at least, so that the rounding of no precision moves a neuron across.

    Args:
        magnitude: |a| of every token's neurons, float64[B, F].
        fraction: The share, in [0, 1].

    Returns:
        threshold f32[F] and scale f32[B].
    """
    kept = round(fraction * magnitude.shape[1])
    ordered = np.sort(magnitude, axis=1)[:, ::-1]
    edges = np.concatenate([2 * ordered[:, :1], ordered, np.zeros((len(ordered), 1))], axis=1)
    scale = (edges[:, kept] + edges[:, kept + 1]) / 2
    relative = magnitude / scale[:, None]
    largest_dropped = np.where(relative < 1, relative, 0).max(axis=0)
    smallest_kept = np.where(relative < 1, np.inf, relative).min(axis=0)
    low, high = np.maximum(largest_dropped, 1 / _FACTOR), np.minimum(smallest_kept, _FACTOR)
    return np.sqrt(low * high).astype(np.float32), scale.astype(np.float32)
