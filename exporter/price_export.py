"""Calibration of a model to skip inputs of all its products, or reuse of an existing one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from clada.contract.manifest import Policy
from clada.errors import CladaError
from clada.exporter.calibration.calibrate import prompt_tokens
from clada.exporter.calibration.price_calibration import PriceCalibration, calibrate_price, choose
from clada.exporter.calibration.price_file import CalibratedOn, read_price_calibration, write_price_calibration
from clada.exporter.calibration.rows import CalibrationRows
from clada.exporter.manifest_sections import inputs_section, price_section
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.hashes import model_hash, tensors_hash
from clada.exporter.model.products import Product, find_products
from clada.exporter.model.sparse_products import row_shares
from clada.exporter.prepared import Prepared
from clada.exporter.quantization.kept_rounding import keep_rounded, rounding_key, take_rounded
from clada.exporter.quantization.narrow_weights import narrow_weights
from clada.exporter.quantization.product_quantization import hold_products, quantize_products
from clada.exporter.quantization.quantize import QuantizationConfig, Quantized


def calibrate_inputs(
    model: Any,
    rows: CalibrationRows,
    share: float,
    policy: Policy,
    quantization: QuantizationConfig | None,
    narrow: bool,
    data: tuple[str, str],
    kept: Path,
    rounded: Path,
    report: Callable[[str], None],
) -> Prepared:
    """Round a model's weights, in place, if requested, and calibrate it.

    Args:
        model: A causal LM in float32.
        rows: Calibration tokens.
        share: Share of all weights' bytes that a token reads.
        policy: Policy, which decides the adaptation of the scale.
        quantization: Format to quantize weights to first; None for no quantization.
        narrow: Whether to round weights to bfloat16 first.
        data: Name and SHA-256 of the text.
        kept: File of the kept calibration, which is reused where it exists.
        rounded: That of the weights that were rounded by text.
        report: Called with each line of progress.

    Raises:
        CladaError: No price reads that share.
    """
    follows = policy.scale == "load", policy.anticipation
    rounding = None if quantization is None else asdict(quantization)
    settings = json.dumps([version("clada"), share, *follows, rounding, narrow])
    of = CalibratedOn(model_hash(model), *data, tensors_hash(settings, {"rows": rows.whole}))
    products = find_products(model)
    quantized = _quantized(model, of.model, products, quantization, rows.decoded, rounded, report)
    if narrow:
        narrow_weights(model, products, report)
    calibration = _kept(kept, of, products)
    if calibration is None:
        prompt = prompt_tokens(rows.decoded.shape[1])
        calibration = calibrate_price(model, products, rows, prompt, [share], *follows)
        write_price_calibration(kept, calibration, of)
    else:
        report(f"taking the calibration of an earlier run from {kept}")
    return prepared_for(calibration, share, quantized, data, report)


def _quantized(
    model: Any,
    model_sha256: str,
    products: Sequence[Product],
    config: QuantizationConfig | None,
    rows: Tensor | None,
    kept: Path,
    report: Callable[[str], None],
) -> Quantized | None:
    if config is None:
        return None
    report(f"quantizing to int{config.bits}, a scale for each {config.block_size} weights")
    if rows is None or not config.follows_text:  # it takes seconds
        return quantize_products(model, products, config, None, report)
    key = rounding_key(model_sha256, rows, config)
    quantized = take_rounded(kept, key, config)
    if quantized is not None:
        report(f"taking the weights that an earlier run rounded from {kept}")
        hold_products(model, products, quantized)
        return quantized
    quantized = quantize_products(model, products, config, rows, report)
    keep_rounded(kept, key, quantized)
    return quantized


def take_inputs(
    model: Any,
    path: Path,
    share: float,
    quantization: QuantizationConfig | None,
    narrow: bool,
    rows: Tensor | None,
    rounded: Path,
    report: Callable[[str], None],
) -> Prepared:
    """Calibrate a model from a file that `clada calibrate` wrote of it.

    Args:
        model: See `calibrate_inputs`, as are others.
        path: Path of the file.
        share: Share of all weights' bytes.
        quantization: Format to quantize weights to first.
        narrow: See `calibrate_inputs`.
        rows: i64[N, S] tokens, for a way to quantize that follows text.
        rounded: See `calibrate_inputs`.
        report: Called with each line of progress.

    Raises:
        CladaError: The file cannot be used, is of another model, or no price in it reads that share.
    """
    products = find_products(model)
    calibration, of = read_price_calibration(path, products)
    if of.model != model_hash(model):
        raise CladaError(f"{path} is the calibration of another model: its weights are not this model's")
    quantized = _quantized(model, of.model, products, quantization, rows, rounded, report)
    if narrow:
        narrow_weights(model, products, report)
    return prepared_for(calibration, share, quantized, (of.data, of.data_sha256), report)


def _kept(path: Path, of: CalibratedOn, products: Any) -> PriceCalibration | None:
    """Calibration kept in a file; None where there is none, or it is damaged or of something else."""
    if not path.is_file():
        return None
    try:
        calibration, found = read_price_calibration(path, products)
    except CladaError:
        return None
    return calibration if found == of else None


def prepared_for(
    calibration: PriceCalibration,
    share: float,
    quantized: Quantized | None,
    data: tuple[str, str],
    report: Callable[[str], None],
) -> Prepared:
    """A calibration as it is for a share of bytes."""
    choice = choose(calibration, share)
    for point in choice.dial:
        report(
            f"  effort {point.effort:5.3f}: {point.bytes:6.1%} of all weights' bytes read; KL "
            f"{point.divergence_nats:.4f} nats a token, {point.agreement:.1%} of next tokens unchanged"
        )
    calibrated = Calibrated(
        tuple(choice.thresholds),
        anticipations=tuple(calibration.anticipations),
        load_map=calibration.load_map,
        row_share=row_shares([worth.product for worth in calibration.worths]),
    )
    return Prepared(
        calibrated,
        price_section(calibration, choice, *data),
        quantized=quantized,
        inputs=inputs_section(calibration, choice),
    )
