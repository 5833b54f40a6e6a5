"""A checkpoint's model patched as that of an artifact was."""

from typing import Any

from clada.contract.artifact import Artifact
from clada.errors import CladaError
from clada.exporter.model.products import find_products
from clada.exporter.prepared import patch
from clada.exporter.quantization.narrow_weights import narrow_weights
from clada.exporter.quantization.packed import read_packed


def make_sparse(model: Any, artifact: Artifact, *, quantized: bool = True) -> None:
    """Patch a checkpoint's model, in place, as that of an artifact was.

    Args:
        model: The model, not patched yet.
        artifact: The artifact.
        quantized: Whether it computes with the artifact's weights where those are quantized, or rounded to bfloat16.

    Raises:
        CladaError: The model has other products than the artifact's, or weights far from them.
    """
    manifest, holds = artifact.manifest, quantized and artifact.quantization is not None
    if manifest.inputs is None:
        patch(model, read_packed(artifact.model) if holds else None, None)
        return
    products = find_products(model)
    ours = [(product.name, product.inputs, product.outputs) for product in products]
    theirs = [(product.name, product.inputs, product.outputs) for product in manifest.inputs.products]
    for mine, their in zip(ours, theirs, strict=False):
        if mine != their:
            raise CladaError(f"the model has the product {mine}, where the artifact has {their}: it is of another one")
    if len(ours) != len(theirs):
        raise CladaError(f"the model has {len(ours)} products, and the artifact {len(theirs)}: it is of another one")
    if quantized and manifest.model.weights is not None:
        narrow_weights(model, products, lambda _: None)
    names = [product.name for product in products]
    patch(model, read_packed(artifact.model, names) if holds else None, products)
