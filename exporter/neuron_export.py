"""Calibration of a model to skip neurons, or reuse of one kept by an export that failed after it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from clada.exporter.calibration.calibrate import Calibration, CalibrationConfig, calibrate
from clada.exporter.calibration.kept import calibration_key, keep_calibration, take_calibration
from clada.exporter.manifest_sections import calibration_section
from clada.exporter.model.patch import sparsify
from clada.exporter.prepared import Prepared
from clada.exporter.quantization.quantize import QuantizationConfig, Quantized, hold, quantize_model


def calibrate_neurons(
    model: Any,
    rows: Tensor,
    config: CalibrationConfig,
    quantization: QuantizationConfig | None,
    data: tuple[str, str],
    kept: Path,
    report: Callable[[str], None],
) -> Prepared:
    """Quantize and calibrate a model, in place.

    Args:
        model: A causal LM of one of FAMILIES, in float32.
        rows: i64[N, S] calibration tokens.
        config: Goal of the calibration.
        quantization: Format to quantize weights to first; None for no quantization.
        data: Name and SHA-256 of the text.
        kept: File of the kept calibration, which is reused where it exists.
        report: Called with each line of progress.
    """
    calibration, quantized = _calibrated(model, rows, config, quantization, kept, report)
    for index, layer in enumerate(calibration.layers):
        report(f"  layer {index:3}  pool {layer.pool:6.1%}  not computed {layer.realised:6.1%}")
    report(
        f"  {calibration.ffn_cost:.1%} of the FFN bytes read; KL {calibration.divergence:.4f} nats a token, "
        f"{calibration.agreement:.1%} of next tokens unchanged"
    )
    section = calibration_section(calibration, *data)
    return Prepared(calibration.calibrated, section, quantized, calibration.pools)


def _calibrated(
    model: Any,
    rows: Tensor,
    config: CalibrationConfig,
    quantization: QuantizationConfig | None,
    kept: Path,
    report: Callable[[str], None],
) -> tuple[Calibration, Quantized | None]:
    key = calibration_key(model, rows, config, quantization)
    sparsify(model)
    taken = take_calibration(kept, key)
    if taken is not None:
        report(f"taking the calibration of an earlier run from {kept}")
        calibration, quantized = taken
        if quantized is not None:
            hold(model, quantized)
        return calibration, quantized
    quantized = None
    if quantization is not None:
        report(f"quantizing to int{quantization.bits}, a scale for each {quantization.block_size} weights")
        quantized = quantize_model(model, rows, quantization, report)
    calibration = calibrate(model, rows, config)
    keep_calibration(kept, key, calibration, quantized)
    return calibration, quantized
