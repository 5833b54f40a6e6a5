"""Price rule: the cost of dropping an input of a product, and the thresholds that follow from one price per byte.

Dropping input i costs x_i^2 E[g_i^2] / 2 nats, to second order: g is the gradient of log p(token) with respect to the
input, for a token drawn from the model's own prediction, so that E[g_i^2] is the diagonal of the Fisher information. An
input is worth reading where that is at least the price of a weight times the weights of its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.exporter.model.products import Product, input_hooks
from clada.exporter.progress import tracked

_DRAWS = 2
# Bins of the worth of an input, in powers of ten; beyond them everything is kept or dropped. Nats a weight are small,
# but what others weigh inputs by is not: the norm of a row of an output matrix is a vocabulary's.
_EDGES = torch.linspace(-30, 20, 2001, dtype=torch.float64)
# With those below the first and above the last edge.
BINS = len(_EDGES) + 1
_LARGEST = torch.finfo(torch.float32).max


def sensitivities(
    model: Any, products: Sequence[Product], rows: Tensor, prompt_tokens: int, seed: int = 0
) -> list[Tensor]:
    """Estimate E[g_i^2] of each product's inputs, f64[D], over the tokens after the prompts.

    Args:
        model: A causal LM in float32.
        products: Products of the model.
        rows: i64[R, S] tokens; one row after the other is in memory.
        prompt_tokens: Tokens at the start of each row that are not counted.
        seed: Seed of the tokens drawn from the model's predictions.
    """
    totals = [torch.zeros(product.inputs, dtype=torch.float64) for product in products]
    generator = torch.Generator().manual_seed(seed)
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    inputs: dict[int, Tensor] = {}

    def keep(index: int, x: Tensor) -> Tensor:
        # Differentiation ends at the first inputs: gradients below them are not needed. Elsewhere a view, whose
        # gradient is of this product alone: where attention and FFN are side by side, both read one tensor.
        inputs[index] = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        inputs[index].retain_grad()
        return inputs[index]

    try:
        with torch.enable_grad(), input_hooks(products, keep):
            for row in tracked(rows.unbind(), "gradients"):
                inputs.clear()
                logits = model(input_ids=row[None], use_cache=False).logits[0]
                log_p = torch.log_softmax(logits.float(), dim=-1)  # [S, V]
                for draw in range(_DRAWS):
                    drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                    log_p.gather(1, drawn).sum().backward(retain_graph=draw + 1 < _DRAWS)
                    for index, total in enumerate(totals):
                        gradient = inputs[index].grad
                        assert gradient is not None
                        total += gradient.reshape(len(row), -1)[prompt_tokens:].double().square().sum(0)
                        inputs[index].grad = None
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
    count = rows.shape[0] * (rows.shape[1] - prompt_tokens) * _DRAWS
    return [total / count for total in totals]


@dataclass
class Worth:
    """Worth of the inputs of one product, input by input and token by token.

    Args:
        product: The product.
        factor: f64[D]; an input is worth factor_i x_i^2.
        counts: f64[BINS], inputs of all tokens by bin of _EDGES.
    """

    product: Product
    factor: Tensor
    counts: Tensor

    def kept(self, price: float) -> float:
        """Share of inputs that are worth a price."""
        above = self.counts.flip(0).cumsum(0).flip(0)[1:] / self.counts.sum()
        return float(np.interp(np.log10(price), _EDGES.numpy(), above.numpy()))

    def unskipped(self) -> float:
        """Share of inputs that are not 0; products never read the rows of zeros."""
        return float(1 - self.counts[0] / self.counts.sum())

    def thresholds(self, price: float) -> Tensor:
        """Least |x_i|, f32[D], at which an input is worth a price; the largest float32 for inputs worth nothing."""
        least = (price / self.factor).sqrt()
        return torch.nan_to_num(least, nan=0.0, posinf=_LARGEST).clamp(max=_LARGEST).float()


def by_sensitivity(product: Product, sensitivity: Tensor) -> Tensor:
    """Factor f64[D] of the rule above: nats per weight for a unit of x_i^2."""
    return sensitivity / (2 * product.outputs)


@torch.no_grad()
def measure(
    model: Any, products: Sequence[Product], factors: Sequence[Tensor], rows: Tensor, prompt_tokens: int
) -> list[Worth]:
    """Read rows densely, and count the worth of the inputs after the prompts."""
    worths = [
        Worth(product, factor, torch.zeros(BINS, dtype=torch.float64))
        for product, factor in zip(products, factors, strict=True)
    ]

    def count(index: int, x: Tensor) -> None:
        tokens = x.reshape(rows.shape[1], -1)[prompt_tokens:].double()
        worth = (tokens.square() * worths[index].factor).clamp_min(1e-300).log10()
        bins = torch.bucketize(worth.flatten(), _EDGES)
        worths[index].counts += torch.bincount(bins, minlength=BINS)

    with input_hooks(products, count):
        for row in tracked(rows.unbind(), "inputs"):
            model(input_ids=row[None], use_cache=False)
    return worths


def read_share(worths: Sequence[Worth], prices: Sequence[float]) -> float:
    """Share of all weights that a token reads, on calibration text, at a price of each product."""
    total = sum(worth.product.weights for worth in worths)
    return sum(w.product.weights * w.kept(price) for w, price in zip(worths, prices, strict=True)) / total


def price_of(worths: Sequence[Worth], share: float) -> float:
    """Price at which a token reads a share of these products' weights."""
    low, high = float(_EDGES[0]), float(_EDGES[-1])
    for _ in range(60):
        middle = (low + high) / 2
        above = read_share(worths, [10**middle] * len(worths)) > share
        low, high = (middle, high) if above else (low, middle)
    return float(10 ** ((low + high) / 2))
