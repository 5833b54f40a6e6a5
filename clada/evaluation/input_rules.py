"""Comparison of rules that skip inputs of a model's products, at equal bytes of the whole model.

A rule weighs an input by factor_i x_i^2 and keeps it where that reaches a level:

price  by what dropping it costs the model's output, for each weight of its row; one level for all products
wina   Chen et al. 2025: |x_i| * ||w_i||; a level for each product, with which all keep the same share of inputs. As
       published a token keeps the k largest; with a level one may keep more than another
teal   Liu et al. 2024: |x_i|; levels as in wina, or by TEAL's search for the shares in each block (teal_search.py)

All in PyTorch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clada.errors import UnreachableError
from clada.evaluation.subject import Floats
from clada.evaluation.teal_search import Descent, kept_shares
from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.input_pass import Run, decode_each, share_by_part
from clada.exporter.calibration.price import Worth, by_sensitivity, measure, price_of, read_share, sensitivities
from clada.exporter.model.families import family_of
from clada.exporter.model.products import Product

Weighing = Literal["price", "wina", "teal"]
Part = Literal["ffn", "attention", "output"]
PARTS: tuple[Part, ...] = ("ffn", "attention", "output")
# What TEAL's search is about.
BLOCK: tuple[Part, ...] = ("ffn", "attention")


def part_of(model: Any, product: Product) -> Part:
    """Part of the model that a product belongs to: the feed-forward networks, the output matrix, or attention."""
    if product.linears[0] is model.get_output_embeddings():
        return "output"
    paths = tuple(family_of(model.config).linears.values())
    return "ffn" if product.names[0].endswith(paths) else "attention"


def part_weights(model: Any, products: Sequence[Product]) -> dict[Part, int]:
    """Number of weights of each part."""
    return {part: sum(p.weights for p in products if part_of(model, p) == part) for part in PARTS}


@torch.no_grad()
def weigh(
    model: Any, products: Sequence[Product], weighings: Sequence[Weighing], rows: Tensor, prompt_tokens: int
) -> dict[Weighing, list[Worth]]:
    """Measure the worth of inputs under each weighing, on calibration rows i64[R, S]."""
    factors: list[Tensor] = []
    for weighing in weighings:
        if weighing == "price":
            measured = sensitivities(model, products, rows, prompt_tokens)
            factors += [by_sensitivity(product, value) for product, value in zip(products, measured, strict=True)]
        elif weighing == "wina":
            factors += [
                torch.stack([linear.weight.double().square().sum(0) for linear in product.linears]).sum(0)
                for product in products
            ]
        else:
            factors += [torch.ones(product.inputs, dtype=torch.float64) for product in products]
    # One pass for all: each product is looked at once for each way.
    worths = measure(model, [*products] * len(weighings), factors, rows, prompt_tokens)
    return {
        weighing: worths[index * len(products) : (index + 1) * len(products)]
        for index, weighing in enumerate(weighings)
    }


@dataclass(frozen=True)
class Rule:
    """Thresholds of each product's inputs.

    Args:
        name: Name of the rule.
        share: Share of the whole model's weights that it reads, on calibration text.
        thresholds: f32[D] of each product; None where all are read.
    """

    name: str
    share: float
    thresholds: list[Tensor | None]


def dense_rule(products: Sequence[Product]) -> Rule:
    """Rule that reads everything."""
    return Rule("dense", 1.0, [None] * len(products))


def share_left(name: str, share: float, always: int, total: int) -> float:
    """Share of the other weights that a rule may read when some are always read.

    Raises:
        UnreachableError: Those are more than it may read.
    """
    if share * total <= always:
        raise UnreachableError(
            f"{name} cannot read {share:.0%} of all weights: {always / total:.0%} of them are not to be sparse"
        )
    return (share * total - always) / (total - always)


def make_rule(
    model: Any,
    weighing: Weighing,
    worths: Sequence[Worth],
    parts: Sequence[Part],
    share: float,
    paths: Sequence[Descent] = (),
) -> Rule:
    """Create the rule that reads a share of all weights when only some parts of the model may be sparse.

    Args:
        model: A causal LM.
        weighing: Weighing of the inputs.
        worths: Worth of each product's inputs.
        parts: Those that may be sparse.
        share: Share of all weights.
        paths: Results of TEAL's search for each block; the parts are then BLOCK.

    Raises:
        UnreachableError: The other parts are larger than that.
    """
    sparse = [part_of(model, worth.product) in parts for worth in worths]
    total = sum(worth.product.weights for worth in worths)
    always = sum(worth.product.weights for worth, may in zip(worths, sparse, strict=True) if not may)
    chosen = [worth for worth, may in zip(worths, sparse, strict=True) if may]
    name = f"{weighing}{' greedy' if paths else ''}: {' + '.join(parts)}"
    left = share_left(name, share, always, total)
    if weighing == "price":
        levels = [price_of(chosen, left)] * len(chosen)
    else:
        shares = kept_shares(paths, left) if paths else [left] * len(chosen)
        levels = [price_of([worth], kept) for worth, kept in zip(chosen, shares, strict=True)]
    reads = (read_share(chosen, levels) * (total - always) + always) / total
    given = iter([worth.thresholds(level) for worth, level in zip(chosen, levels, strict=True)])
    return Rule(name, reads, [next(given) if may else None for may in sparse])


@dataclass(frozen=True)
class Outcome:
    """Results of a rule on R rows, means over their T decoded tokens.

    Args:
        divergence: f64[R], KL from the dense model, nats.
        changed: f64[R], share of tokens whose likeliest successor is not the dense model's.
        read: f64[R], share of the whole model's weights that a token read.
        nll: f64[R], of the text's own tokens under what the rule predicted: those after the first decoded one, nats.
        accuracy: f64[R], share of them that were the likeliest.
        read_of_parts: Share of each part's weights that a token read.
    """

    divergence: Floats
    changed: Floats
    read: Floats
    nll: Floats
    accuracy: Floats
    read_of_parts: dict[Part, float]


def outcome_of(decoded: Decoded, read: Tensor, read_of_parts: Mapping[Part, float]) -> Outcome:
    """Compute the outcome of a decoding; `read` is f32[R, T], of the whole model."""

    def means(values: Tensor) -> Floats:
        found: Floats = values.double().mean(1).numpy()
        return found

    return Outcome(
        divergence=means(decoded.divergence),
        changed=means(~decoded.agrees),
        read=means(read),
        # The first decoded token was predicted by the prompt, densely.
        nll=means(decoded.surprisal[:, 1:]),
        accuracy=means(decoded.foreseen[:, 1:]),
        read_of_parts=dict(read_of_parts),
    )


def compare(
    model: Any, products: Sequence[Product], rules: Sequence[Rule], rows: Tensor, prompt_tokens: int
) -> list[Outcome]:
    """Decode rows i64[R, S] by each rule, their prompts dense."""
    parts = [part_of(model, product) for product in products]
    runs = [Run(rule.thresholds) for rule in rules]
    return [
        outcome_of(decoded, decoded.read, dict(share_by_part(decoded, products, parts)))
        for decoded in decode_each(model, products, runs, rows, prompt_tokens)
    ]
