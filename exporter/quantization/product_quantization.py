"""Quantization of the products of a model that will skip inputs: blocks lie along their rows, a row per input."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from clada.errors import CladaError
from clada.exporter.model.products import Product, joined_weights, layer_starts
from clada.exporter.progress import tracked
from clada.exporter.quantization.gptq import round_outward
from clada.exporter.quantization.moments import product_moments
from clada.exporter.quantization.quantize import (
    Packed,
    QuantizationConfig,
    Quantized,
    check_is_near,
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
    for group in tracked(_layer_by_layer(products), "quantizing"):
        # Of a layer at a time, so that each sees what was rounded before it.
        moments = [None] * len(group) if rows is None else product_moments(model, group, rows)
        for product, of_product in zip(group, moments, strict=True):
            weights = joined_weights(product)
            packed[product.name] = _packed(product, weights, config, of_product)
            values = packed[product.name].values()
            wrong += float((weights - values).square().sum())
            total += float(weights.square().sum())
            _set(product, values)
    report(f"  weights moved by {(wrong / max(total, 1e-30)) ** 0.5:.1%} of their norm ({config.method})")
    return Quantized(config.bits, config.block_size, products=packed)


def _layer_by_layer(products: Sequence[Product]) -> list[Sequence[Product]]:
    """Group the products by layer, with the output matrix last."""
    starts = layer_starts(products)
    return [products[start:end] for start, end in pairwise([*starts, len(products)]) if start < end]


def _packed(product: Product, weights: Tensor, config: QuantizationConfig, moments: Tensor | None) -> Packed:
    form = config.bits, config.block_size
    try:
        if moments is None:
            return Packed(*round_to_nearest(weights, *form), config.bits)
        return Packed(*round_outward(weights, moments, *form), config.bits)
    except CladaError as error:
        raise CladaError(f"{product.name} cannot be quantized: {error}") from error


def _check(product: Product, config: QuantizationConfig) -> None:
    if product.outputs % config.block_size:
        raise CladaError(
            f"{product.name} cannot be quantized: a block of {config.block_size} does not divide its outputs, "
            f"{product.outputs}"
        )
    if not all(bool(torch.isfinite(linear.weight).all()) for linear in product.linears):
        raise CladaError(f"{product.name} cannot be quantized: it holds NaN or infinite weights")


@torch.no_grad()
def hold_products(model: Any, products: Sequence[Product], quantized: Quantized) -> None:
    """Make a model compute with the values of packed weights that were made of it before.

    Raises:
        CladaError: They were made of another model.
    """
    untie(model)
    round_embedding(model)
    for product in products:
        packed = quantized.products.get(product.name)
        if packed is None:
            raise CladaError(f"the artifact has no quantized {product.name}")
        values, weights = packed.values(), joined_weights(product)
        if values.shape != weights.shape:
            raise CladaError(
                f"{product.name} is {list(weights.shape)} in the checkpoint, {list(values.shape)} in the artifact"
            )
        check_is_near(product.name, weights, values)
        _set(product, values)


def _set(product: Product, values: Tensor) -> None:
    widths = [linear.out_features for linear in product.linears]
    for linear, part in zip(product.linears, values.split(widths, dim=1), strict=True):
        linear.weight.copy_(part.t())
