"""The hand-over from any way of calibrating to the tracing, the verification and the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clada.contract.manifest import CalibrationSection, InputsSection
from clada.contract.pool import PoolPolicy
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.patch import sparsify
from clada.exporter.model.products import Product, find_products
from clada.exporter.model.sparse_products import sparsify_products
from clada.exporter.quantization.product_quantization import packed_rows
from clada.exporter.quantization.quantize import Quantized, hold


@dataclass(frozen=True)
class Prepared:
    """A calibration, whatever is skipped.

    Args:
        calibrated: The constants of the graph.
        section: The manifest's account of it.
        quantized: The packed weights; None where nothing is quantized.
        pools: How pools are chosen; None where every neuron may be used.
        inputs: How inputs are skipped; None where neurons are.
    """

    calibrated: Calibrated
    section: CalibrationSection
    quantized: Quantized | None = None
    pools: PoolPolicy | None = None
    inputs: InputsSection | None = None

    def patch(self, model: Any) -> None:
        """Make a copy of the calibrated model sparse, in place, in whatever type it is."""
        patch(model, self.quantized, None if self.inputs is None else find_products(model))


def patch(model: Any, quantized: Quantized | None, products: Sequence[Product] | None) -> None:
    """Make a model sparse, in place, with the values of packed weights that were made of it before.

    Args:
        model: A causal LM.
        quantized: The packed weights; None where nothing is quantized.
        products: Those that skip inputs; None where neurons are skipped.

    Raises:
        CladaError: The weights were made of another model, or the model cannot be made sparse.
    """
    if products is None:
        sparsify(model)
        if quantized is not None:
            hold(model, quantized)
        return
    sparsify_products(model, products, () if quantized is None else packed_rows(model, products, quantized))
