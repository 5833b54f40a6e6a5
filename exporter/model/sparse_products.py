"""Replacement of a causal LM's linear layers, in place, by products that skip inputs: every matrix a token reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from clada.exporter.model.patch import replace
from clada.exporter.model.products import Product, joined_weights
from clada.exporter.model.steering import CurrentPass, SteeredModule
from clada.ops import SPARSE_LINEAR, Op
from clada.ops.torch import torch_op

_NO_FORMATS: Mapping[str, int] = MappingProxyType({})


@dataclass
class _Parts:
    """Input and outputs that the layers of a product share in a pass."""

    x: Tensor | None = None
    outputs: Sequence[Tensor] = ()


class SparseProduct(SteeredModule):
    """The linear layers of one input as one product that skips inputs.

    Args:
        index: Index of the product.
        product: The layers; their weights are copied.
        current: The pass of the model that its thresholds and scale come from.
    """

    def __init__(self, index: int, product: Product, current: CurrentPass) -> None:
        super().__init__(current)
        self.index, self.of_last = index, product.of_last
        self.widths = [linear.out_features for linear in product.linears]
        self.name, self.weight_names = product.name, list[str]()
        self.set_weights(SPARSE_LINEAR, {"w": joined_weights(product)})
        self._parts = _Parts()

    @property
    def inputs(self) -> int:
        """D, the number of inputs."""
        return int(self.get_parameter(self.weight_names[0]).shape[0])

    def set_weights(self, op: Op, weights: Mapping[str, Tensor], formats: Mapping[str, int] = _NO_FORMATS) -> None:
        """Set the op to compute by from here on, with its weights by input name, and its attributes, in order."""
        for name in self.weight_names:
            delattr(self, name)
        self.op, self.weight_names, self.formats = op, list(weights), dict(formats)
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))

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
        weights = [self.get_parameter(name) for name in self.weight_names]
        threshold = self.current.threshold(self.index, self.inputs, x.device)
        y, self.current.trace.active[self.index] = torch_op(self.op)(
            tokens_first, *weights, threshold, scale, *self.formats.values()
        )
        whole = y.reshape(*x.shape[:-1], y.shape[-1])
        return whole.split(self.widths, dim=-1) if len(self.widths) > 1 else [whole]


class ProductPart(nn.Module):
    """One linear layer of a product."""

    def __init__(self, product: SparseProduct, part: int, linear: nn.Linear) -> None:
        super().__init__()
        self.product, self.part, self.bias = product, part, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute the linear layer without the skipped inputs."""
        y: Tensor = self.product(x, self.part)
        return y if self.bias is None else y + self.bias


def sparse_products(model: nn.Module) -> list[SparseProduct]:
    """Products of a model after `sparsify_products`, in the order in which they run."""
    found = {module.index: module for module in model.modules() if isinstance(module, SparseProduct)}
    return [found[index] for index in sorted(found)]


def sparsify_products(model: Any, products: Sequence[Product]) -> None:
    """Replace a causal LM's linear layers, in place, by products that skip inputs.

    One product of the model is in memory twice at a time. The model computes densely but where it is `steered`.

    Args:
        model: A causal LM.
        products: Its products, see `find_products`.
    """
    current = CurrentPass()
    for index, product in enumerate(products):
        sparse = SparseProduct(index, product, current)
        for part, (path, linear) in enumerate(zip(product.names, product.linears, strict=True)):
            replace(model, path, ProductPart(sparse, part, linear))


def row_shares(products: Sequence[Product]) -> Tensor:
    """Share f32[P] of all their weights that is in one row of each product."""
    total = sum(product.weights for product in products)
    return torch.tensor([product.outputs / total for product in products])
