"""Common parts of the sparse ops: the comparison of a token's values with their thresholds."""

import numpy as np

from clada.ops.record import Array


def is_kept(a: Array, threshold: Array, scale: Array) -> Array:
    """Mask bool[B, S, K] of the values of a [B, S, K] at or above thresholds f32[K] times a scale f32[B, S]."""
    below = np.abs(a) < scale[..., None] * threshold
    return np.asarray((scale >= 0)[..., None] & (a != 0) & ~below)


# The same as statements of a function body: reads a in float32, threshold, scale; writes large, and zero and last_axis.
SELECT = """
    zero = Constant <value_float = 0.0> ()
    last_axis = Constant <value_ints = [-1]> ()
    scale_column = Unsqueeze (scale, last_axis)
    limit = Mul (scale_column, threshold)
    magnitude = Abs (a)
    below = Less (magnitude, limit)
    not_below = Not (below)
    is_zero = Equal (a, zero)
    is_nonzero = Not (is_zero)
    is_token = GreaterOrEqual (scale_column, zero)
    nonzero_of_token = And (is_token, is_nonzero)
    large = And (nonzero_of_token, not_below)
"""


def tie_free_threshold(a: Array, scale: Array, rng: np.random.Generator) -> Array:
    """Choose thresholds f32[K] far from every |a| / scale, so that rounding cannot move a value across."""
    positive = scale > 0
    if not positive.any():
        return np.asarray(rng.uniform(0.1, 1, (a.shape[-1],)), np.float32)
    values = np.sort(np.abs(a[positive]) / scale[positive][:, None], axis=0)
    edges = np.concatenate([0 * values[:1], values, 2 * values[-1:] + 0.1])
    # The widest gaps among the middle half: about half of the values are kept.
    middle = edges[len(edges) // 4 : len(edges) - len(edges) // 4]
    columns = np.arange(a.shape[-1])
    pick = rng.integers(0, min(2, len(middle) - 1), a.shape[-1])
    widest = np.argsort(-np.diff(middle, axis=0), axis=0)[pick, columns]
    return np.asarray((middle[widest, columns] + middle[widest + 1, columns]) / 2, np.float32)
