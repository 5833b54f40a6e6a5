"""Second moments of the inputs of a model's matrices, on calibration text."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.patch import SparseLayer
from clada.exporter.model.products import Product, input_hooks
from clada.exporter.model.steering import steered

_ROWS_AT_A_TIME = 4


class _SeenError(Exception):
    """Signal that ends a pass once everything needed has been seen."""


@torch.no_grad()
def input_moments(model: Any, rows: Tensor, owners: Iterable[nn.Module]) -> dict[tuple[nn.Module, bool], Tensor]:
    """Sum over tokens the products of inputs, in dense passes that end at the last owner.

    Args:
        model: A causal LM after `sparsify`.
        rows: i64[N, S] calibration tokens.
        owners: The modules whose inputs are meant, in the order in which they run.

    Returns:
        For each owner f32[D, D] of its inputs, under (owner, False); of a feed-forward network f32[F, F] of what its
        neurons give, under (owner, True).
    """
    owners = list(owners)
    moments: dict[tuple[nn.Module, bool], Tensor] = {}

    def add(owner: nn.Module, outward: bool, inputs: Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        product = flat.T @ flat
        key = (owner, outward)
        moments[key] = moments[key] + product if key in moments else product

    def show(place: int, x: Tensor) -> None:
        owner = owners[place]
        add(owner, False, x)
        if isinstance(owner, SparseLayer):
            add(owner, True, owner.hidden(x))
        if owner is owners[-1]:
            raise _SeenError

    with shown_inputs(owners, show):
        for ids in rows.split(_ROWS_AT_A_TIME):
            with suppress(_SeenError), steered(model):
                model(input_ids=ids, use_cache=False)
    return moments


@torch.no_grad()
def product_moments(model: Any, products: Sequence[Product], rows: Tensor, take: Callable[[Tensor], None]) -> None:
    """Sum over tokens the products of inputs, f32[D, D] of each product, in one dense pass over all rows.

    Args:
        model: A causal LM, not patched.
        products: All of its products, in the order in which they run.
        rows: i64[N, S] calibration tokens; what a layer makes of all of them is in memory at once.
        take: Given the sums of one product after another. It may change that product's weights: the pass goes on with
            what they are then, so that later sums are of inputs as they will be.
    """

    def add(index: int, x: Tensor) -> None:
        flat = x.reshape(-1, x.shape[-1]).float()
        take(flat.T @ flat)
        if index + 1 == len(products):
            raise _SeenError

    with input_hooks(products, add), suppress(_SeenError):
        model(input_ids=rows, use_cache=False)
