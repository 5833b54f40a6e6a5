"""Feed-forward layers of real sizes on the device: random weights and tokens, an exact share of neurons, copies."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from clada.benchmark.exact_thresholds import exact_share
from clada.benchmark.precisions import BLOCKS, Blocks
from clada.benchmark.shapes import Shape
from clada.ops import OPS, QUANTIZED
from clada.ops.activations import ACTIVATIONS
from clada.ops.quantized_matrices import scales_name
from clada.ops.record import Array, Op
from clada.ops.sparse_ffn import weight_matrices
from clada.ops.torch import dequantized

# What each op is measured with; a ReLU is zero for half of the neurons, so that no larger share could be kept.
_ACTIVATION = {True: "silu", False: "gelu"}
# By name of the quantized op, the op whose variant it is.
_OF_FLOATS = {quantized.name: OPS[name] for name, quantized in QUANTIZED.items()}
_CACHES_OF_WEIGHTS = 4
_FEWEST_COPIES = 4
# Neurons are read for their activations, and nothing else, where next to nothing is active.
_LEAST_READ = 1 / 3
_Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Feed-forward layer.

    Args:
        op: A feed-forward op.
        shape: Its sizes.
        activation: Name of its activation.
        dtype: Type of its tokens, and of its weights where they are not quantized.
        weights: Weights, scales and biases by the op's input names, on the device.
        precision: Precision of its weights: the name of the type, or of one of BLOCKS.
    """

    op: Op
    shape: Shape
    activation: str
    dtype: torch.dtype
    weights: dict[str, torch.Tensor]
    precision: str

    @property
    def gated(self) -> bool:
        """Whether it has a gate."""
        return "w_up" in self.weights

    @property
    def attributes(self) -> dict[str, str | float]:
        """Attributes of its op."""
        blocks = BLOCKS.get(self.precision)
        of_blocks = {"bits": blocks.bits, "block_size": blocks.block_size} if blocks else {}
        return {**of_blocks, "activation": self.activation}

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return next(iter(self.weights.values())).device

    @property
    def inward(self) -> torch.Tensor:
        """Gate or up projection [F, D] whose products are activated; in float32 where it is quantized."""
        name = "w_gate" if self.gated else "w_in"
        some = {tensor: self.weights[tensor] for tensor in (name, scales_name(name)) if tensor in self.weights}
        return widened(self.op, some, self.attributes, torch.float32)[name]

    def widened(self) -> "Layer":
        """Layer with dequantized weights, rounded to its type."""
        weights = widened(self.op, self.weights, self.attributes, self.dtype)
        return Layer(float_op(self.op), self.shape, self.activation, self.dtype, weights, name_of(self.dtype))


def name_of(dtype: torch.dtype) -> str:
    """Name of a type, as in the op records."""
    return str(dtype).removeprefix("torch.")


def random_layer(op: Op, shape: Shape, dtype: torch.dtype, device: str) -> Layer:
    """Create a layer with weights scaled so that activations are of the order of 1; the same at each call."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = {"F": shape.neurons, "D": shape.hidden}
    weights = {}
    for spec in op.inputs:
        if spec.name == "x" or spec.dtype != "T":
            continue
        size = [sizes[axis] for axis in spec.axes]
        factor = shape.hidden**-0.5 if len(size) == 2 else 0.25
        weights[spec.name] = (torch.randn(size, generator=generator, device=device) * factor).to(dtype)
    return Layer(op, shape, _ACTIVATION["w_up" in weights], dtype, weights, name_of(dtype))


def codes_and_scales(
    rows: int, width: int, terms: int, blocks: Blocks, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Create a random quantized matrix.

    Args:
        rows: Number of rows.
        width: Weights per row.
        terms: Number of products that are summed, for sums of the order of 1.
        blocks: Format to quantize it to.
        generator: Random generator of the matrix's device.
    """
    device = generator.device
    packed, scales = width * blocks.bits // 8, width // blocks.block_size
    codes = torch.randint(0, 256, (rows, packed), dtype=torch.uint8, generator=generator, device=device)
    # Codes are as likely one as the other, so that their square is a third of the largest one's.
    factor = (3 / terms) ** 0.5 / (1 << (blocks.bits - 1))
    signs = 1 - 2 * torch.randint(0, 2, (rows, scales), generator=generator, device=device)
    spread = 0.5 + torch.rand((rows, scales), generator=generator, device=device)
    return codes.view(torch.int8), (signs * spread * factor).half()


def random_quantized_layer(op: Op, shape: Shape, dtype: torch.dtype, precision: str, device: str) -> Layer:
    """Create the quantized variant of a layer, with random codes and scales; the same at each call.

    Args:
        op: SparseGatedFFN or SparseFFN.
        shape: Its sizes.
        dtype: Type of tokens and biases.
        precision: One of BLOCKS.
        device: Device to create it on.
    """
    generator = torch.Generator(device).manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for spec in op.inputs:
        if spec.role == "matrix":
            names, hidden = (spec.name, scales_name(spec.name)), shape.hidden
            matrix = codes_and_scales(shape.neurons, hidden, hidden, BLOCKS[precision], generator)
            weights |= zip(names, matrix, strict=True)
        elif spec.role == "bias":
            size = shape.neurons if spec.axes == ("F",) else shape.hidden
            weights[spec.name] = (torch.randn(size, generator=generator, device=device) * 0.25).to(dtype)
    return Layer(QUANTIZED[op.name], shape, _ACTIVATION["w_up" in weights], dtype, weights, precision)


def random_x(layer: Layer, batch: int, tokens: int) -> torch.Tensor:
    """Random tokens T[B, S, D], the same at each call."""
    generator = torch.Generator(layer.device).manual_seed(1)
    size = (batch, tokens, layer.shape.hidden)
    return torch.randn(size, generator=generator, device=layer.device).to(layer.dtype)


def magnitudes(layer: Layer, x: torch.Tensor) -> Array:
    """Magnitudes |a| of every neuron for every token, float64[B * S, F], for x T[B, S, D]."""
    z = x.flatten(0, 1).double() @ layer.inward.double().T
    if "b_in" in layer.weights:
        z += layer.weights["b_in"].double()
    return np.abs(ACTIVATIONS[layer.activation].reference(z.cpu().numpy()))


def selection(
    layer: Layer, threshold: Array | None, scale: Array, pool: Array | None = None
) -> dict[str, torch.Tensor]:
    """Inputs that select neurons: thresholds (0 where None), scale f32[B, S], and the pool (all where None)."""
    neurons = layer.shape.neurons
    arrays = {
        "threshold": np.zeros(neurons, np.float32) if threshold is None else threshold,
        "scale": scale,
        "pool": np.ones((len(scale), neurons), np.bool_) if pool is None else pool,
    }
    return {name: torch.from_numpy(array).to(layer.device) for name, array in arrays.items()}


def exact_selection(layer: Layer, x: torch.Tensor, fraction: float) -> dict[str, torch.Tensor]:
    """Inputs that keep exactly this share of neurons for each token of x T[B, 1, D]."""
    threshold, scale = exact_share(magnitudes(layer, x), fraction)
    return selection(layer, threshold, scale[:, None])


def float_op(op: Op) -> Op:
    """The op with weights in floating point that an op computes."""
    return _OF_FLOATS.get(op.name, op)


def widened(
    op: Op, tensors: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The float op's tensors of those of an op: matrices rounded to a type, all others as they are.

    Args:
        op: A quantized op, or another, of which everything stays as it is.
        tensors: Some or all of its inputs, by name; each matrix with its scales.
        attributes: Of the op.
        dtype: T.
    """
    if op.name not in _OF_FLOATS:
        return dict(tensors)
    wide = {}
    for spec in _OF_FLOATS[op.name].inputs:
        if spec.name not in tensors:
            continue
        tensor = tensors[spec.name]
        if spec.role == "matrix":
            tensor = dequantized(tensor, tensors[scales_name(spec.name)], int(attributes["bits"])).to(dtype)
        wide[spec.name] = tensor
    return wide


@dataclass(frozen=True)
class Copies:
    """The copies of one layer.

    Args:
        layer: The layer that the first copy is.
        ours: Of each copy the op's weights, scales and biases by name.
        dense: What torch's dense layer takes of each copy, of the first ones where weights are quantized: "inward"
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
    return max(_FEWEST_COPIES, -(-_CACHES_OF_WEIGHTS * cache_bytes // int(_LEAST_READ * layer_bytes)))


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
    """Ours and torch's, in one memory as far as they are the same; of a layer that is not quantized."""
    weights = _rolled(layer, number)
    if layer.gated:
        # Stored as one, so that a product can take both.
        inward = torch.cat([weights["w_gate"], weights["w_up"]])
        weights["w_gate"], weights["w_up"] = inward.chunk(2)
        return weights, {"inward": inward, "outward": weights["w_down"].T.contiguous()}
    biases = {name: weights[name] for name in ("b_in", "b_out")}
    return weights, {"inward": weights["w_in"], "outward": weights["w_out"].T.contiguous(), **biases}


def copies_of(layer: Layer, count: int, dense_count: int) -> Copies:
    """Make them; where weights are not quantized as many of torch's as of ours."""
    if layer.precision == name_of(layer.dtype):
        ours, dense = zip(*(_copy(layer, number) for number in range(count)), strict=True)
        return Copies(layer, list(ours), list(dense))
    wide = layer.widened()
    return Copies(
        layer,
        [_rolled(layer, number) for number in range(count)],
        [_copy(wide, number)[1] for number in range(dense_count)],
    )
