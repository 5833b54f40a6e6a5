"""Replacement of a causal LM's linear layers, in place, by products that skip inputs: every matrix a token reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clada.exporter.model.held_weights import HeldRows, release
from clada.exporter.model.patch import replace
from clada.exporter.model.products import Product, joined_rows
from clada.exporter.model.steering import CurrentPass, SteeredModule
from clada.ops import SPARSE_LINEAR
from clada.ops.torch import torch_op


@dataclass
class _Parts:
    """Input and outputs that the layers of a product share in a pass."""

    x: Tensor | None = None
    outputs: Sequence[Tensor] = ()


class SparseProduct(SteeredModule):
    """The linear layers of one input as one product that skips inputs.

    It computes by the op for unquantized weights, with the values of what it holds, unless a pass gives it tensors.

    Args:
        index: Index of the product.
        product: The layers.
        rows: Their weights [D, N], a row per input.
        current: The pass of the model that its thresholds and scale come from.
    """

    op = SPARSE_LINEAR

    def __init__(self, index: int, product: Product, rows: HeldRows, current: CurrentPass) -> None:
        super().__init__(current)
        self.index, self.name, self.of_last = index, product.name, product.of_last
        self.inputs, self.rows = product.inputs, rows
        self.widths = [linear.out_features for linear in product.linears]
        biases = [linear.bias for linear in product.linears]
        # Added to all outputs at once where there is one for each: a node less for every layer but one.
        self.biases = nn.ParameterList(biases) if all(bias is not None for bias in biases) else None
        self._parts = _Parts()

    def forward(self, x: Tensor, part: int) -> Tensor:
        """Output of one of the layers for x [B, S, D], or [B * S, D]; the first call computes those of all."""
        parts = self._parts
        if part == 0:
            parts.x, parts.outputs = x, self._computed(x)
        if parts.x is not x:
            raise RuntimeError(f"the layers of product {self.index} no longer read the same input")
        output = parts.outputs[part]
        if part + 1 == len(self.widths):
            parts.x, parts.outputs = None, ()
        return output

    def _computed(self, x: Tensor) -> Sequence[Tensor]:
        steering = self.current.steering
        scale = self.current.scale_at(self.index, x, of_last=self.of_last and steering.last_only)
        tokens_first = x.reshape(scale.shape[0], -1, x.shape[-1])
        if steering.pools is not None:
            tokens_first = torch.where(steering.pools[self.index].unsqueeze(1), tokens_first, 0)
        threshold = self.current.threshold(self.index, self.inputs, x.device)
        if steering.weights:
            op, weights, formats = self.rows.op, steering.weights[self.index], [*self.rows.formats.values()]
        else:
            op, weights, formats = self.op, [self.rows.values(x.dtype)], []
        y, self.current.trace.active[self.index] = torch_op(op)(tokens_first, *weights, threshold, scale, *formats)
        whole = y.reshape(*x.shape[:-1], y.shape[-1])
        if self.biases is not None:
            whole = whole + (self.biases[0] if len(self.biases) == 1 else torch.cat(list(self.biases)))
        return whole.split(self.widths, dim=-1) if len(self.widths) > 1 else [whole]


class ProductPart(nn.Module):
    """One linear layer of a product."""

    def __init__(self, product: SparseProduct, part: int, linear: nn.Linear) -> None:
        super().__init__()
        self.product, self.part = product, part
        self.bias = linear.bias if product.biases is None else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the linear layer without the skipped inputs."""
        y: Tensor = self.product(x, self.part)
        return y if self.bias is None else y + self.bias


def sparse_products(model: nn.Module) -> list[SparseProduct]:
    """Products of a model after `sparsify_products`, in the order in which they run."""
    found = {module.index: module for module in model.modules() if isinstance(module, SparseProduct)}
    return [found[index] for index in sorted(found)]


def sparsify_products(model: Any, products: Sequence[Product], rows: Sequence[HeldRows] = ()) -> None:
    """Replace a causal LM's linear layers, in place, by products that skip inputs.

    One product of the model is in memory twice at a time: the layers are of no use afterwards. The model computes
    densely but where it is `steered`.

    Args:
        model: A causal LM.
        products: Its products, see `find_products`.
        rows: Weights [D, N] of each, in the place of the layers' own.
    """
    current = CurrentPass()
    for index, product in enumerate(products):
        sparse = SparseProduct(index, product, rows[index] if rows else joined_rows(product), current)
        for part, (path, linear) in enumerate(zip(product.names, product.linears, strict=True)):
            release(linear)
            replace(model, path, ProductPart(sparse, part, linear))


def row_shares(products: Sequence[Product]) -> Tensor:
    """Share f32[P] of all their weights that is in one row of each product."""
    total = sum(product.weights for product in products)
    return torch.tensor([product.outputs / total for product in products])
