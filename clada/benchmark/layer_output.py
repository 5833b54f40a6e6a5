"""Expected output of a layer, from the weights as a contender holds them."""

from collections.abc import Mapping

import numpy as np

from clada.benchmark.precisions import BLOCKS, restored
from clada.ops.activations import ACTIVATIONS
from clada.ops.record import Array

ACTIVATION = "silu"


def weights_of_ours(weights: Mapping[str, Array], precision: str) -> dict[str, Array]:
    """Weights f32[F, D] as our op holds them: all three quantized in blocks along D."""
    if precision not in BLOCKS:
        return dict(weights)
    return {name: restored(matrix, BLOCKS[precision]) for name, matrix in weights.items()}


def weights_of_products(weights: Mapping[str, Array], precision: str) -> dict[str, Array]:
    """Weights f32[F, D] as a dense graph holds them: quantized along the summed axis, which is F for the last one."""
    if precision not in BLOCKS:
        return dict(weights)
    return {
        name: restored(matrix.T, BLOCKS[precision]).T if name == "w_down" else restored(matrix, BLOCKS[precision])
        for name, matrix in weights.items()
    }


def layer_output(weights: Mapping[str, Array], x: Array, threshold: Array) -> Array:
    """Output f32[1, S, D] of the layer, without neurons whose activations are below the thresholds f32[F]."""
    a = ACTIVATIONS[ACTIVATION].reference(x @ weights["w_gate"].T)
    hidden = np.where(np.abs(a) >= threshold, a, 0) * (x @ weights["w_up"].T)
    return hidden @ weights["w_down"]
