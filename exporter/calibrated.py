"""Result of any kind of calibration, for the tracing, the verification and the manifest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clada.contract.manifest import CalibrationSection, InputsSection
from clada.contract.pool import PoolPolicy
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.patch import Sparsity
from clada.exporter.quantization.quantize import Quantized


@dataclass(frozen=True)
class Calibrated:
    """Calibration result, of neurons or of inputs.

    Args:
        load_map: Constants of the load signal.
        section: Section of the manifest.
        patch: Makes another copy of the model sparse, in place, in whatever type it is.
        sparsity: Of the model that was calibrated; None where that is not patched.
        quantized: The packed weights; None where nothing is quantised.
        pools: Policy of the pools; None where every neuron may be used.
        inputs: Settings by which inputs are skipped; None where neurons are.
    """

    load_map: LoadMap
    section: CalibrationSection
    patch: Callable[[Any], Sparsity]
    sparsity: Sparsity | None = None
    quantized: Quantized | None = None
    pools: PoolPolicy | None = None
    inputs: InputsSection | None = None
