"""Where a model skips: its layers' feed-forward networks, by neurons, or all of its products, by inputs."""

from collections.abc import Sequence
from typing import Any

from clada.contract.artefact import Artefact
from clada.errors import CladaError
from clada.exporter.packed_weights import read_packed
from clada.exporter.patch import SparseLayer, Sparsity, sparse_layers, sparsify
from clada.exporter.product_quantization import hold_products
from clada.exporter.products import find_products
from clada.exporter.quantization import hold
from clada.exporter.sparse_products import SparseProduct, sparse_products, sparsify_products

Site = SparseLayer | SparseProduct


def sparse_sites(model: Any) -> Sequence[Site]:
    """Those of a patched model, in order."""
    return sparse_layers(model) or sparse_products(model)


def sparsified(model: Any, artefact: Artefact, *, quantized: bool = True) -> Sparsity:
    """Patch a checkpoint's model, in place, as that of an artefact was; its thresholds are 0.

    Args:
        model: The model, not patched yet.
        artefact: The artefact.
        quantized: Whether it computes with the artefact's weights where those are quantised.

    Raises:
        CladaError: The model has other products than the artefact's, or weights far from them.
    """
    manifest, holds = artefact.manifest, quantized and artefact.quantization is not None
    if manifest.inputs is None:
        sparsity = sparsify(model)
        if holds:
            hold(model, read_packed(artefact.model))
        return sparsity
    products = find_products(model)
    ours = [(product.name, product.inputs, product.outputs) for product in products]
    theirs = [(product.name, product.inputs, product.outputs) for product in manifest.inputs.products]
    for mine, their in zip(ours, theirs, strict=False):
        if mine != their:
            raise CladaError(f"the model has the product {mine}, where the artefact has {their}: it is of another one")
    if len(ours) != len(theirs):
        raise CladaError(f"the model has {len(ours)} products, and the artefact {len(theirs)}: it is of another one")
    if holds:
        hold_products(model, products, read_packed(artefact.model, [product.name for product in products]))
    return sparsify_products(model, products)
