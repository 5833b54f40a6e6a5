"""Model of a checkpoint, patched as that of an artefact, with the same calibrated values."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clada.contract.artefact import Artefact, data_name
from clada.contract.graph_constants import GraphConstants
from clada.contract.onnx_wire import nodes_of
from clada.errors import CladaError
from clada.exporter.model.anticipation import from_named
from clada.exporter.model.load_map import NO_POOL, LoadMap
from clada.exporter.model.patch import Sparsity, sparsify
from clada.exporter.model.products import find_products
from clada.exporter.model.sparse_products import sparsify_products
from clada.exporter.quantization.packed import read_packed
from clada.exporter.quantization.product_quantization import hold_products
from clada.exporter.quantization.quantize import hold
from clada.ops import DOMAIN, LOAD_SIGNAL, graph_names


def sparsified(model: Any, artefact: Artefact, *, quantized: bool = True) -> Sparsity:
    """Patch a checkpoint's model, in place, as that of an artefact; its thresholds are 0.

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


def load_constants(path: Path, sparsity: Sparsity, data: Path | None = None) -> LoadMap:
    """Load the calibrated values of an exported graph into a patched model; returns its load map.

    Args:
        path: The ONNX file.
        sparsity: State of the model; its thresholds, compensation and anticipations are replaced.
        data: The file of the graph's weights; the portable graph's own where None.
    """
    content = path.read_bytes()
    values = GraphConstants(content, data or path.with_name(data_name(path)))

    def constant(name: str) -> Tensor:
        return torch.from_numpy(values.read(name).copy())

    layers = range(len(sparsity.thresholds))
    sparsity.thresholds[:] = [constant(graph_names.threshold(n)) for n in layers]
    sparsity.compensation[:] = [constant(name) for name in map(graph_names.compensation, layers) if name in values]
    probed = [n for n in layers if graph_names.anticipation(n)[0] in values]
    sparsity.anticipations = from_named(probed, constant)
    node = next(node for node in nodes_of(content, DOMAIN) if node.op == LOAD_SIGNAL.name)
    weight = dict(node.floats)[LOAD_SIGNAL.attributes[0].name]
    return LoadMap(
        surprisal_knots=constant(graph_names.SURPRISAL_KNOTS),
        entropy_knots=constant(graph_names.ENTROPY_KNOTS),
        scale_knots=constant(graph_names.SCALE_KNOTS),
        reanalysis_load=constant(graph_names.REANALYSIS_LOAD)
        if graph_names.REANALYSIS_LOAD in values
        else torch.tensor(NO_POOL),
        surprisal_weight=weight,
        token_scale=constant(graph_names.TOKEN_SCALE) if graph_names.TOKEN_SCALE in values else None,
    )
