"""A layer several times over, each with weights of its own, as a model has one after the other.

Together they are larger than the card's last cache, several times, so that weights come from memory.
"""

from dataclasses import dataclass

import torch

from clada.benchmark.precisions import BLOCKS
from clada.benchmark.shapes import Shape
from clada.ops.record import Op
from clada.ops.sparse_ffn import weight_matrices
from gpu_suite.layer_data import Layer, name_of

_CACHES = 4
_FEWEST = 4
# Neurons are read for their activations, and nothing else, where next to nothing is active.
_LEAST_READ = 1 / 3
_Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Copies:
    """The copies of one layer.

    Args:
        layer: The layer that the first copy is.
        ours: Of each copy the op's weights, scales and biases by name.
        dense: What torch's dense layer takes of each copy, of the first ones where weights are quantised: "inward"
            [F or 2F, D], gate before up, "outward" [D, F], and the biases where there are any, in the layer's type.
    """

    layer: Layer
    ours: list[_Weights]
    dense: list[_Weights]

    @property
    def matrix_bytes(self) -> int:
        """Size of one weight matrix of ours."""
        return matrix_bytes(self.layer.shape, self.layer.precision)

    @property
    def dense_matrix_bytes(self) -> int:
        """Size of one weight matrix of torch's."""
        return matrix_bytes(self.layer.shape, name_of(self.layer.dtype))


def matrix_bytes(shape: Shape, precision: str) -> int:
    """Size of one weight matrix, with its scales where there are any."""
    weights, blocks = shape.neurons * shape.hidden, BLOCKS.get(precision)
    if blocks is None:
        dtype: torch.dtype = getattr(torch, precision)
        return weights * dtype.itemsize
    return weights * blocks.bits // 8 + weights // blocks.block_size * torch.float16.itemsize


def count_of(op: Op, shape: Shape, precision: str, cache_bytes: int) -> int:
    """How many copies it takes to read several times the cache, whatever is active."""
    layer_bytes = weight_matrices(op) * matrix_bytes(shape, precision)
    return max(_FEWEST, -(-_CACHES * cache_bytes // int(_LEAST_READ * layer_bytes)))


def bytes_needed(op: Op, shape: Shape, precision: str, element: str, count: int, dense_count: int) -> int:
    """Device memory that the copies take, and the making of them.

    Args:
        op: Which.
        shape: Sizes of a copy.
        precision: Of our weights.
        element: Type of torch's.
        count: Of our copies.
        dense_count: Of torch's.
    """
    matrices, ours, dense = weight_matrices(op), matrix_bytes(shape, precision), matrix_bytes(shape, element)
    # Activations are found in float64.
    found = 2 * matrix_bytes(shape, "float64")
    if precision == element:
        # Of both there is one inward matrix; the outward one is there as ours and as torch's.
        return matrices * (count + 1) * ours + count * dense + found
    return matrices * (count + 1) * ours + matrices * (dense_count + 2) * dense + found


def _rolled(layer: Layer, number: int) -> _Weights:
    """The same neurons in another order."""
    return {
        name: torch.roll(tensor, number, 0) if name != "b_out" else tensor for name, tensor in layer.weights.items()
    }


def _copy(layer: Layer, number: int) -> tuple[_Weights, _Weights]:
    """Ours and torch's, in one memory as far as they are the same; of a layer that is not quantised."""
    weights = _rolled(layer, number)
    if layer.gated:
        # Stored as one, so that a product can take both.
        inward = torch.cat([weights["w_gate"], weights["w_up"]])
        weights["w_gate"], weights["w_up"] = inward.chunk(2)
        return weights, {"inward": inward, "outward": weights["w_down"].T.contiguous()}
    biases = {name: weights[name] for name in ("b_in", "b_out")}
    return weights, {"inward": weights["w_in"], "outward": weights["w_out"].T.contiguous(), **biases}


def copies_of(layer: Layer, count: int, dense_count: int) -> Copies:
    """Make them; where weights are not quantised as many of torch's as of ours."""
    if layer.precision == name_of(layer.dtype):
        ours, dense = zip(*(_copy(layer, number) for number in range(count)), strict=True)
        return Copies(layer, list(ours), list(dense))
    wide = layer.widened()
    return Copies(
        layer,
        [_rolled(layer, number) for number in range(count)],
        [_copy(wide, number)[1] for number in range(dense_count)],
    )
