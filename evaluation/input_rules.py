"""Rules by which a token skips inputs of any of a model's products, compared at equal bytes of the whole model.

A rule weighs an input by factor_i x_i^2 and keeps it where that reaches a level:

price  by what dropping it costs the model's output, for each weight of its row; one level for all products
wina   Chen et al. 2025: |x_i| * ||w_i||; a level for each product, with which all keep the same share of inputs
teal   Liu et al. 2024: |x_i|; levels as in wina, without TEAL's search for a share of each block

All in PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clada.evaluation.subject import Floats
from clada.exporter.input_pass import Run, decode_each, share_by_part
from clada.exporter.patch import family_of
from clada.exporter.price import Worth, by_sensitivity, measure, price_of, read_share, sensitivities
from clada.exporter.products import Product
from clada.plugins.errors import UnreachableError

Weighing = Literal["price", "wina", "teal"]
Part = Literal["ffn", "attention", "output"]
PARTS: tuple[Part, ...] = ("ffn", "attention", "output")


def part_of(model: Any, product: Product) -> Part:
    """Where in the model a product is: of its feed-forward networks, its output matrix, or of attention."""
    if product.linears[0] is model.get_output_embeddings():
        return "output"
    paths = tuple(family_of(model).linears.values())
    return "ffn" if product.names[0].endswith(paths) else "attention"


@torch.no_grad()
def weigh(
    model: Any, products: Sequence[Product], weighings: Sequence[Weighing], rows: Tensor, prompt_tokens: int
) -> dict[Weighing, list[Worth]]:
    """What inputs are worth by each way to weigh them, on calibration rows i64[R, S]."""
    worths: dict[Weighing, list[Worth]] = {}
    for weighing in weighings:
        if weighing == "price":
            measured = sensitivities(model, products, rows, prompt_tokens)
            factors = [by_sensitivity(product, value) for product, value in zip(products, measured, strict=True)]
        elif weighing == "wina":
            factors = [
                torch.stack([linear.weight.double().square().sum(0) for linear in product.linears]).sum(0)
                for product in products
            ]
        else:
            factors = [torch.ones(product.inputs, dtype=torch.float64) for product in products]
        worths[weighing] = measure(model, products, factors, rows, prompt_tokens)
    return worths


@dataclass(frozen=True)
class Rule:
    """What each product's inputs must reach to be read.

    Args:
        name: Of the rule.
        share: Of the whole model's weights that it reads, by calibration text.
        thresholds: f32[D] of each product; None where all are read.
    """

    name: str
    share: float
    thresholds: list[Tensor | None]


def make_rule(model: Any, weighing: Weighing, worths: Sequence[Worth], parts: Sequence[Part], share: float) -> Rule:
    """The rule that reads a share of all weights when only some parts of the model may be sparse.

    Raises:
        UnreachableError: The other parts are larger than that.
    """
    sparse = [part_of(model, worth.product) in parts for worth in worths]
    total = sum(worth.product.weights for worth in worths)
    always = sum(worth.product.weights for worth, may in zip(worths, sparse, strict=True) if not may)
    chosen = [worth for worth, may in zip(worths, sparse, strict=True) if may]
    name = f"{weighing}: {' + '.join(parts)}"
    if share * total <= always:
        raise UnreachableError(
            f"{name} cannot read {share:.0%} of all weights: {always / total:.0%} of them are not to be sparse"
        )
    left = (share * total - always) / (total - always)  # of the parts that may be sparse
    if weighing == "price":
        levels = [price_of(chosen, left)] * len(chosen)
    else:
        levels = [price_of([worth], left) for worth in chosen]
    reads = (read_share(chosen, levels) * (total - always) + always) / total
    given = iter([worth.thresholds(level) for worth, level in zip(chosen, levels, strict=True)])
    return Rule(name, reads, [next(given) if may else None for may in sparse])


@dataclass(frozen=True)
class Outcome:
    """What a rule gave on R rows, means over their T decoded tokens.

    Args:
        divergence: f64[R], KL from the dense model, nats.
        changed: f64[R], share of tokens whose likeliest successor is not the dense model's.
        read: f64[R], share of the whole model's weights that a token read.
        read_of_parts: The same of each part.
    """

    divergence: Floats
    changed: Floats
    read: Floats
    read_of_parts: dict[Part, float]


def compare(
    model: Any, products: Sequence[Product], rules: Sequence[Rule], rows: Tensor, prompt_tokens: int
) -> list[Outcome]:
    """Decode rows i64[R, S] by each rule, their prompts dense."""
    parts = [part_of(model, product) for product in products]
    runs = [Run(rule.thresholds) for rule in rules]
    outcomes = []
    for decoded in decode_each(model, products, runs, rows, prompt_tokens):
        figures = (decoded.divergence, ~decoded.agrees, decoded.read)
        divergence, changed, read = (values.double().mean(1).numpy() for values in figures)
        outcomes.append(Outcome(divergence, changed, read, dict(share_by_part(decoded, products, parts))))
    return outcomes
