"""A layer several times over, each with weights of its own, as a model has one after the other.

Together they are larger than the card's last cache, several times, so that weights come from memory.
"""

from dataclasses import dataclass

import torch

from clada.benchmark.gpu.layer_data import Layer
from clada.benchmark.shapes import Shape
from clada.plugins.ops import SPARSE_GATED_FFN
from clada.plugins.ops.record import Op
from clada.plugins.ops.sparse_ffn import weight_matrices

_CACHES = 4
_FEWEST = 4
# Neurons are read for their activations, and nothing else, where next to nothing is active.
_LEAST_READ = 1 / 3


@dataclass(frozen=True)
class Copies:
    """The copies of one layer.

    Args:
        layer: The layer that the first copy is.
        ours: Of each copy the op's weights and biases by name.
        dense: Of each copy what torch's dense layer takes: "inward" [F or 2F, D], gate before up, "outward" [D, F],
            and the biases where there are any.
    """

    layer: Layer
    ours: list[dict[str, torch.Tensor]]
    dense: list[dict[str, torch.Tensor]]

    @property
    def matrix_bytes(self) -> int:
        """Size of one weight matrix."""
        return self.layer.inward.nbytes


def count_of(op: Op, shape: Shape, dtype: torch.dtype, cache_bytes: int) -> int:
    """How many copies it takes to read several times the cache, whatever is active."""
    layer_bytes = weight_matrices(op) * shape.neurons * shape.hidden * dtype.itemsize
    return max(_FEWEST, -(-_CACHES * cache_bytes // int(_LEAST_READ * layer_bytes)))


def bytes_needed(op: Op, shape: Shape, dtype: torch.dtype, count: int) -> int:
    """Device memory that the copies take, and the making of them."""
    matrix = shape.neurons * shape.hidden
    # The outward matrix is there as ours and as torch's; activations are found in float64.
    return matrix * (dtype.itemsize * (weight_matrices(op) * (count + 1) + count) + 2 * 8)


def _copy(layer: Layer, number: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same neurons in another order."""
    weights = {
        name: torch.roll(tensor, number, 0) if name != "b_out" else tensor for name, tensor in layer.weights.items()
    }
    if layer.op is SPARSE_GATED_FFN:
        # Stored as one, so that a product can take both.
        inward = torch.cat([weights["w_gate"], weights["w_up"]])
        weights["w_gate"], weights["w_up"] = inward.chunk(2)
        return weights, {"inward": inward, "outward": weights["w_down"].T.contiguous()}
    biases = {name: weights[name] for name in ("b_in", "b_out")}
    return weights, {"inward": weights["w_in"], "outward": weights["w_out"].T.contiguous(), **biases}


def copies_of(layer: Layer, count: int) -> Copies:
    """Make them."""
    ours, dense = zip(*(_copy(layer, number) for number in range(count)), strict=True)
    return Copies(layer, list(ours), list(dense))
