"""Quantization of a patched model's matrices; the model then holds the dequantized weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from clada.errors import CladaError
from clada.exporter.defaults import BLOCK_SIZE, METHOD, METHODS
from clada.exporter.model.held_weights import HeldEmbedding, HeldLinear, HeldTensor
from clada.exporter.model.patch import SparseLayer, decoder_layers, sparse_layers
from clada.exporter.quantization.gptq import quantize_rows, round_inward, round_outward
from clada.exporter.quantization.moments import input_moments
from clada.ops import QUANTIZED_LINEAR
from clada.ops.block_quantization import BITS, BLOCK_SIZES, dequantize

# Weights that are rounded or compared at a time: what that takes beside the matrix.
_WEIGHTS_AT_A_TIME = 2**22
# How far weights of the same checkpoint may be from quantized ones, as a share of their norm; int4 needs a quarter.
_FARTHEST = 0.5


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of the quantization.

    Args:
        bits: One of BITS.
        block_size: Weights per scale, one of BLOCK_SIZES.
        method: "rtn" rounds to the nearest; with "gptq" later weights make up for the rounding of earlier ones, on
            calibration text.
    """

    bits: int = 4
    block_size: int = BLOCK_SIZE
    method: str = METHOD

    @property
    def follows_text(self) -> bool:
        """Whether the rounding of a weight depends on calibration text."""
        return self.method == "gptq"

    def __post_init__(self) -> None:
        choices = {"bits": BITS, "block_size": BLOCK_SIZES, "method": METHODS}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise CladaError(f"{name} is {getattr(self, name)}; it must be one of {', '.join(map(str, values))}")


def rows_at_a_time(matrix: Tensor) -> int:
    """Number of a matrix's rows to round or compare at a time."""
    return max(1, _WEIGHTS_AT_A_TIME // max(1, matrix.shape[1]))


@dataclass(frozen=True)
class Packed:
    """Quantized matrix, with blocks along its rows.

    Args:
        codes: i8[F, P].
        scales: f16[F, N].
        bits: Bits per code.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    op = QUANTIZED_LINEAR

    @property
    def width(self) -> int:
        """Weights per row, D."""
        return self.codes.shape[1] * 8 // self.bits

    @property
    def block_size(self) -> int:
        """Weights per scale."""
        return self.width // max(1, self.scales.shape[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """See HeldRows."""
        return {"w": self.codes, "s": self.scales}

    @property
    def formats(self) -> dict[str, int]:
        """See HeldRows."""
        return {"bits": self.bits, "block_size": self.block_size}

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantized matrix [F, D]."""
        return self.columns(0, self.width).to(dtype)

    def distance(self, matrix: Tensor) -> tuple[float, float]:
        """Sum of squares of what sets the values apart from a matrix [F, D], and of that matrix."""
        apart = total = 0.0
        size = rows_at_a_time(matrix)
        for codes, scales, rows in zip(*(of.split(size) for of in (self.codes, self.scales, matrix)), strict=True):
            wide = rows.float()
            apart += float((wide - Packed(codes, scales, self.bits).values()).square().sum(dtype=torch.float64))
            total += float(wide.square().sum(dtype=torch.float64))
        return apart, total

    def columns(self, start: int, end: int) -> Tensor:
        """Some columns of the dequantized matrix, f32[F, end - start]."""
        size = max(1, self.block_size)
        first, last = start // size, -(-end // size)
        codes = self.codes[:, first * size * self.bits // 8 : last * size * self.bits // 8]
        scales = self.scales[:, first:last].numpy().astype(np.float32)
        whole = torch.from_numpy(dequantize(codes.numpy(), scales, self.bits))
        return whole[:, start - first * size : end - first * size]


@dataclass(frozen=True)
class Quantized:
    """Packed weights of a model.

    Args:
        bits: Bits per code.
        block_size: Weights per scale.
        layers: By input name of the op, of each feed-forward network.
        linears: By path from the model, of attention's projections and of the output matrix; rows are outputs.
        products: Where inputs are skipped, by name, in the place of the others; rows are inputs.
    """

    bits: int
    block_size: int
    layers: list[dict[str, Packed]] = field(default_factory=list)
    linears: dict[str, Packed] = field(default_factory=dict)
    products: dict[str, Packed] = field(default_factory=dict)


@dataclass(frozen=True)
class _Matrix:
    """Matrix of the model, with blocks along its rows.

    Args:
        name: For messages.
        owner: The module that holds it.
        parameter: Its name there.
        outward: Whether its rows are its inputs, as in the down projection.
    """

    name: str
    owner: nn.Module
    parameter: str
    outward: bool = False

    @property
    def weight(self) -> Tensor:
        """Values of the matrix."""
        return self.owner.get_parameter(self.parameter).data


def linear_modules(model: Any) -> dict[str, nn.Linear]:
    """Linear modules to quantize beside the feed-forward networks, by path: attention's projections, output matrix."""
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and (id(module) in inside or module is head)
    }


def _groups(model: Any) -> Iterator[list[_Matrix]]:
    """Matrices of each decoder layer, in the order in which they are used, then the output matrix."""
    linears = {id(linear): _Matrix(path, linear, "weight") for path, linear in linear_modules(model).items()}
    for layer in decoder_layers(model):
        group = [linears[id(module)] for module in layer.modules() if id(module) in linears]
        for sparse in (module for module in layer.modules() if isinstance(module, SparseLayer)):
            *inward, outward = sparse.matrices
            of_layer = f"of layer {sparse.index}"
            group += [_Matrix(f"{name} {of_layer}", sparse, name) for name in inward]
            group.append(_Matrix(f"{outward} {of_layer}", sparse, outward, outward=True))
        yield group
    yield [linears[id(model.get_output_embeddings())]]


def check_can_be_quantized(model: Any, config: QuantizationConfig) -> None:
    """Raise CladaError for the first matrix that cannot be quantized: blocks do not divide it, or it is not finite."""
    for matrix in (matrix for group in _groups(model) for matrix in group):
        width = matrix.weight.shape[1]
        if width % config.block_size:
            what = "input dimension" if isinstance(matrix.owner, nn.Linear) else "width"
            raise CladaError(
                f"{matrix.name} cannot be quantized: a block of {config.block_size} does not divide its {what}, {width}"
            )
        if not bool(torch.isfinite(matrix.weight).all()):
            raise CladaError(f"{matrix.name} cannot be quantized: it holds NaN or infinite weights")


def round_to_nearest(matrix: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix [F, D] to the nearest codes i8[F, P], with scales f16[F, N]."""
    rows = matrix.split(rows_at_a_time(matrix))
    parts = [quantize_rows(part.float().numpy(), bits, block_size) for part in rows]
    codes, scales = (torch.from_numpy(np.concatenate(of)) for of in zip(*parts, strict=True))
    return codes, scales


def _packed(matrix: _Matrix, config: QuantizationConfig, moments: dict[tuple[nn.Module, bool], Tensor]) -> Packed:
    form = config.bits, config.block_size
    try:
        if not config.follows_text:
            return Packed(*round_to_nearest(matrix.weight, *form), config.bits)
        rounding = round_outward if matrix.outward else round_inward
        return Packed(*rounding(matrix.weight, moments[matrix.owner, matrix.outward], *form), config.bits)
    except CladaError as error:
        raise CladaError(f"{matrix.name} cannot be quantized: {error}") from error


def untie(model: Any) -> None:
    """Give the output matrix values of its own, where it shares the embedding's: that stays as it is."""
    head = model.get_output_embeddings()
    if not isinstance(head, HeldLinear) and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def round_embedding(model: Any) -> None:
    """Round the embedding to float16, the graph's type for it: picking a row of the table costs no time."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, HeldEmbedding):
        embedding.held = HeldTensor(embedding.held.values(torch.float16))
    else:
        embedding.weight.data.copy_(embedding.weight.half())


@torch.no_grad()
def quantize_model(
    model: Any, rows: Tensor, config: QuantizationConfig, report: Callable[[str], None] = print
) -> Quantized:
    """Quantize a patched model in place; it computes with the dequantized weights from then on.

    Args:
        model: A causal LM after `sparsify`, in float32.
        rows: i64[N, S] calibration tokens; for "gptq".
        config: Options of the quantization.
        report: Called with each line of progress.

    Raises:
        CladaError: Names the first matrix that cannot be quantized.
    """
    check_can_be_quantized(model, config)
    untie(model)
    round_embedding(model)
    paths = {id(linear): path for path, linear in linear_modules(model).items()}
    quantized = Quantized(config.bits, config.block_size, [{} for _ in sparse_layers(model)])
    wrong = total = 0.0
    for group in tqdm(list(_groups(model)), desc="quantizing", leave=False, disable=None):
        owners = dict.fromkeys(matrix.owner for matrix in group)
        moments = input_moments(model, rows, owners) if config.follows_text else {}
        for matrix in group:
            packed = _packed(matrix, config, moments)
            apart, whole = packed.distance(matrix.weight)
            wrong, total = wrong + apart, total + whole
            matrix.weight.copy_(packed.values())
            if isinstance(matrix.owner, SparseLayer):
                quantized.layers[matrix.owner.index][matrix.parameter] = packed
            else:
                quantized.linears[paths[id(matrix.owner)]] = packed
    report(f"  weights moved by {(wrong / max(total, 1e-30)) ** 0.5:.1%} of their norm ({config.method})")
    return quantized


@torch.no_grad()
def hold(model: Any, quantized: Quantized) -> None:
    """Make a patched model compute with the values of packed weights that were made of it before.

    Raises:
        CladaError: They were made of another model.
    """
    untie(model)
    round_embedding(model)
    paths = {id(linear): path for path, linear in linear_modules(model).items()}
    for matrix in (matrix for group in _groups(model) for matrix in group):
        if isinstance(matrix.owner, SparseLayer):
            packed = quantized.layers[matrix.owner.index].get(matrix.parameter)
        else:
            packed = quantized.linears.get(paths[id(matrix.owner)])
        if packed is None:
            raise CladaError(f"the artifact has no quantized {matrix.name}")
        check_is_of(packed, matrix.name, matrix.weight)
        matrix.weight.copy_(packed.values())


def check_is_of(packed: Packed, name: str, weight: Tensor) -> None:
    """Raise CladaError for packed weights that are not a rounding of a checkpoint's matrix."""
    theirs = [len(packed.codes), packed.width]
    if theirs != list(weight.shape):
        raise CladaError(f"{name} is {list(weight.shape)} in the checkpoint, {theirs} in the artifact")
    apart, total = packed.distance(weight)
    if not apart <= _FARTHEST**2 * total:
        raise CladaError(f"{name} of the artifact was not quantized from the checkpoint's: they are far apart")
