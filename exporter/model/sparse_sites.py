"""Sparse sites of a model: its layers' feed-forward networks, by neurons, or all of its products, by inputs."""

from collections.abc import Sequence
from typing import Any

from clada.exporter.model.patch import SparseLayer, sparse_layers
from clada.exporter.model.sparse_products import SparseProduct, sparse_products

Site = SparseLayer | SparseProduct


def sparse_sites(model: Any) -> Sequence[Site]:
    """Sparse sites of a patched model, in order."""
    return sparse_layers(model) or sparse_products(model)
