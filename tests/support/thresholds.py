"""Thresholds that fit a patched model."""

import torch
from torch import nn

from clada.exporter.model.patch import SparseLayer
from clada.exporter.model.sparse_sites import sparse_sites


def uniform(model: nn.Module, level: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Of each site, all of them the same."""
    widths = [site.neurons if isinstance(site, SparseLayer) else site.inputs for site in sparse_sites(model)]
    return tuple(torch.full((width,), level) for width in widths)
