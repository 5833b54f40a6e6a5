"""A checkpoint's model patched as that of an artefact was."""

from typing import Any

from clada.contract.artefact import Artefact
from clada.errors import CladaError
from clada.exporter.model.products import find_products
from clada.exporter.prepared import patch
from clada.exporter.quantization.packed import read_packed


def make_sparse(model: Any, artefact: Artefact, *, quantized: bool = True) -> None:
    """Patch a checkpoint's model, in place, as that of an artefact was.

    Args:
        model: The model, not patched yet.
        artefact: The artefact.
        quantized: Whether it computes with the artefact's weights where those are quantised.

    Raises:
        CladaError: The model has other products than the artefact's, or weights far from them.
    """
    manifest, holds = artefact.manifest, quantized and artefact.quantization is not None
    if manifest.inputs is None:
        patch(model, read_packed(artefact.model) if holds else None, None)
        return
    products = find_products(model)
    ours = [(product.name, product.inputs, product.outputs) for product in products]
    theirs = [(product.name, product.inputs, product.outputs) for product in manifest.inputs.products]
    for mine, their in zip(ours, theirs, strict=False):
        if mine != their:
            raise CladaError(f"the model has the product {mine}, where the artefact has {their}: it is of another one")
    if len(ours) != len(theirs):
        raise CladaError(f"the model has {len(ours)} products, and the artefact {len(theirs)}: it is of another one")
    names = [product.name for product in products]
    patch(model, read_packed(artefact.model, names) if holds else None, products)
