"""What the models read."""

import numpy as np

from clada.benchmark.shapes import Shape
from clada.ops.record import Array


def random_tokens(shape: Shape, tokens: int, seed: int) -> Array:
    """Token ids i64[1, S]."""
    return np.random.default_rng(seed).integers(0, shape.vocabulary, (1, tokens))
