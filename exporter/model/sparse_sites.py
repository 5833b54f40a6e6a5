"""Sparse sites of a model: its layers' feed-forward networks, by neurons, or all of its products, by inputs."""

from collections.abc import Sequence
from typing import Any

import torch

from clada.errors import CladaError
from clada.exporter.model.patch import SparseLayer, sparse_layers
from clada.exporter.model.sparse_products import SparseProduct, sparse_products
from clada.exporter.model.steering import SiteSettings

Site = SparseLayer | SparseProduct


def sparse_sites(model: Any) -> Sequence[Site]:
    """Sparse sites of a patched model, in order."""
    return sparse_layers(model) or sparse_products(model)


def check_fits(model: Any, settings: SiteSettings) -> None:
    """Raise CladaError where thresholds are not those of a patched model's sites."""
    sites, thresholds = sparse_sites(model), settings.thresholds
    if len(thresholds) != len(sites):
        kind = "layers" if sparse_layers(model) else "products"
        raise CladaError(f"got thresholds for {len(thresholds)} {kind}, the model has {len(sites)}")
    for site, threshold in zip(sites, thresholds, strict=True):
        is_layer = isinstance(site, SparseLayer)
        name, width = (f"layer {site.index}", site.neurons) if is_layer else (site.name, site.inputs)
        if threshold.shape != (width,) or threshold.dtype != torch.float32:
            raise CladaError(
                f"threshold of {name} is {threshold.dtype} {list(threshold.shape)}, expected torch.float32 [{width}]"
            )
