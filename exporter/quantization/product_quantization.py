"""Quantization of the products of a model that will skip inputs: blocks lie along their rows, a row per input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clada.errors import CladaError
from clada.exporter.model.held_weights import hold
from clada.exporter.model.products import Product, joined_rows, own_weights
from clada.exporter.progress import tracked
from clada.exporter.quantization.gptq import round_outward
from clada.exporter.quantization.moments import product_moments
from clada.exporter.quantization.quantize import (
    Packed,
    QuantizationConfig,
    Quantized,
    check_is_of,
    round_embedding,
    round_to_nearest,
    untie,
)


@torch.no_grad()
def quantize_products(
    model: Any,
    products: Sequence[Product],
    config: QuantizationConfig,
    rows: Tensor | None,
    report: Callable[[str], None],
) -> Quantized:
    """Quantize the products in place; the model computes with the dequantized weights from then on.

    Args:
        model: A causal LM in float32, not patched.
        products: Products of the model.
        config: Options of the quantization.
        rows: i64[N, S] calibration tokens, for "gptq"; None for none.
        report: Called with each line of progress.

    Raises:
        CladaError: Names the first product that cannot be quantized.
    """
    for product in products:
        _check(product, config)
    untie(model)
    round_embedding(model)
    packed: dict[str, Packed] = {}
    wrong = total = 0.0

    def quantize(product: Product, moments: Tensor | None) -> None:
        nonlocal wrong, total
        weights = joined_rows(product).tensor
        packed[product.name] = _packed(product, weights, config, moments)
        apart, whole = packed[product.name].distance(weights)
        wrong, total = wrong + apart, total + whole
        _hold(product, packed[product.name])

    turns = tracked(products, "quantizing")
    if rows is None:
        for product in turns:
            quantize(product, None)
    else:
        product_moments(model, products, rows, lambda moments: quantize(next(turns), moments))
        next(turns, None)  # ends the progress
    report(f"  weights moved by {(wrong / max(total, 1e-30)) ** 0.5:.1%} of their norm ({config.method})")
    return Quantized(config.bits, config.block_size, products=packed)


@dataclass(frozen=True)
class _Columns:
    """Weight [N, D] of one of a product's layers: some columns of its packed rows."""

    packed: Packed
    start: int
    end: int

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of the matrix."""
        return self.packed.columns(self.start, self.end).t().to(dtype)


def _hold(product: Product, packed: Packed) -> None:
    start = 0
    for linear in product.linears:
        hold(linear, _Columns(packed, start, start + linear.out_features))
        start += linear.out_features


def _packed(product: Product, weights: Tensor, config: QuantizationConfig, moments: Tensor | None) -> Packed:
    form = config.bits, config.block_size
    try:
        if moments is None:
            return Packed(*round_to_nearest(weights, *form), config.bits)
        return Packed(*round_outward(weights.float(), moments, *form), config.bits)
    except CladaError as error:
        raise CladaError(f"{product.name} cannot be quantized: {error}") from error


def _check(product: Product, config: QuantizationConfig) -> None:
    if product.outputs % config.block_size:
        raise CladaError(
            f"{product.name} cannot be quantized: a block of {config.block_size} does not divide its outputs, "
            f"{product.outputs}"
        )
    if not all(bool(torch.isfinite(weight).all()) for weight in own_weights(product)):
        raise CladaError(f"{product.name} cannot be quantized: it holds NaN or infinite weights")


@torch.no_grad()
def packed_rows(model: Any, products: Sequence[Product], quantized: Quantized) -> list[Packed]:
    """Packed weights of each of a model's products, which were made of it before; its embedding is rounded as then.

    Raises:
        CladaError: They were made of another model.
    """
    untie(model)
    round_embedding(model)
    found = []
    for product in products:
        packed = quantized.products.get(product.name)
        if packed is None:
            raise CladaError(f"the artifact has no quantized {product.name}")
        check_is_of(packed, product.name, joined_rows(product).tensor)
        found.append(packed)
    return found


def hold_products(model: Any, products: Sequence[Product], quantized: Quantized) -> None:
    """Make a model compute with packed weights that were made of it before, as `quantize_products` leaves it.

    Raises:
        CladaError: They were made of another model.
    """
    for product, packed in zip(products, packed_rows(model, products, quantized), strict=True):
        _hold(product, packed)
