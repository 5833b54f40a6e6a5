"""Estimated cost of dropping an input, against derivatives by brute force, and the thresholds at a price."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from clada.evaluation.input_rules import PARTS, Rule, compare, make_rule, part_of, weigh
from clada.exporter.calibration.price import by_sensitivity, measure, price_of, read_share, sensitivities
from clada.exporter.model.products import find_products, input_hooks
from tests.support.checkpoints import CONFIGS, random_model
from tests.support.every_type import tiny_model

VOCABULARY, TOKENS, PROMPT = 24, 5, 2
IDS = torch.randint(1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(2))
ROWS = torch.randint(1, VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(3))


def small(family: str):
    """A model with a vocabulary that can be summed over."""
    made = random_model if family in CONFIGS else tiny_model
    return made(family, vocab_size=VOCABULARY, num_hidden_layers=2)


def fisher_diagonals(family: str) -> list[torch.Tensor]:
    """The Fisher information f64[D] of each product's inputs, mean over decoded tokens.

    F = sum over predictions t and tokens v of p_t(v) (d log p_t(v) / d x)^2: every derivative of every log-probability
    of the model as Hugging Face has it; nothing is drawn.
    """
    model = small(family).double()
    products = find_products(model)

    def log_probabilities(*added: torch.Tensor) -> torch.Tensor:
        with input_hooks(products, lambda index, x: x + added[index].reshape(x.shape)):
            return torch.log_softmax(model(IDS).logits[0], -1)

    nothing = tuple(torch.zeros(TOKENS, product.inputs, dtype=torch.float64) for product in products)
    jacobians = torch.autograd.functional.jacobian(log_probabilities, nothing)
    weights = log_probabilities(*nothing).detach().exp()
    return [torch.einsum("tv,tvsd->sd", weights, j.square())[PROMPT:].mean(0) for j in jacobians]


# Cohere's attention and feed-forward network read one tensor.
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "cohere"])
def test_sensitivity_is_the_fisher_diagonal(family):
    """With enough draws: the drawn tokens are the only difference between the two."""
    model = small(family)
    products = find_products(model)
    drawn = sensitivities(model, products, IDS.expand(400, -1), PROMPT)
    for product, ours, exact in zip(products, drawn, fisher_diagonals(family), strict=True):
        assert float(ours.sum() / exact.sum()) == pytest.approx(1, abs=0.1), product.names
        assert torch.corrcoef(torch.stack([ours.log(), exact.log()]))[0, 1] > 0.97, product.names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture(scope="module")
def measured():
    model = small("llama")
    products = find_products(model)
    factors = [
        by_sensitivity(p, s) for p, s in zip(products, sensitivities(model, products, ROWS, PROMPT), strict=True)
    ]
    return model, products, measure(model, products, factors, ROWS, PROMPT)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_thresholds_of_a_price_read_the_share_asked_for(measured, share):
    """Counted on the text itself: the inputs of every token that are at or above their thresholds."""
    model, products, worths = measured
    price = price_of(worths, share)
    assert read_share(worths, [price] * len(worths)) == pytest.approx(share, abs=2e-3)
    thresholds = [worth.thresholds(price) for worth in worths]
    kept = [0.0] * len(products)

    def count(index, x):
        kept[index] += float((x.reshape(ROWS.shape[1], -1)[PROMPT:].abs() >= thresholds[index]).double().mean())

    with torch.no_grad(), input_hooks(products, count):
        for row in ROWS:
            model(input_ids=row[None])
    read = sum(p.weights * k / len(ROWS) for p, k in zip(products, kept, strict=True))
    assert read / sum(p.weights for p in products) == pytest.approx(share, abs=5e-3)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_shares_do_not_depend_on_what_inputs_are_weighed_in(measured, size):
    model, products, worths = measured
    others = measure(model, products, [worth.factor * size for worth in worths], ROWS, PROMPT)
    for worth, other in zip(worths, others, strict=True):
        for share in (0.8, 0.4):
            level, same = price_of([worth], share), price_of([other], share)
            assert other.kept(same) == pytest.approx(share, abs=5e-3)
            torch.testing.assert_close(worth.thresholds(level), other.thresholds(same), rtol=0.1, atol=0)


def test_inputs_that_are_worth_nothing_are_never_read(measured):
    worth = measured[2][0]
    factor = worth.factor.clone()
    factor[3] = 0
    thresholds = dataclasses.replace(worth, factor=factor).thresholds(1e-9)
    assert thresholds[3] == torch.finfo(torch.float32).max
    assert torch.isfinite(thresholds).all()


def test_a_rule_that_reads_everything_changes_nothing(measured):
    model, products, _ = measured
    (outcome,) = compare(model, products, [Rule("all", 1.0, [None] * len(products))], ROWS, PROMPT)
    assert outcome.divergence.tolist() == [0.0] * len(ROWS)
    assert outcome.changed.tolist() == [0.0] * len(ROWS)
    assert outcome.read.tolist() == pytest.approx([1.0] * len(ROWS))


@pytest.mark.parametrize("weighing", ["price", "wina", "teal"])
def test_shares_are_of_the_whole_model(measured, weighing):
    """With only some parts sparse, the others are read whole, and all together is the share asked for."""
    model, products, _ = measured
    worths = weigh(model, products, [weighing], ROWS, PROMPT)[weighing]
    for parts in (PARTS, ("ffn",)):
        rule = make_rule(model, weighing, worths, parts, 0.8)
        (outcome,) = compare(model, products, [rule], ROWS, PROMPT)
        assert outcome.read.mean() == pytest.approx(0.8, abs=0.01)
        assert rule.share == pytest.approx(0.8, abs=3e-3)
        for part in PARTS:
            assert (outcome.read_of_parts[part] < 1) == (part in parts)
        weights = {part: sum(p.weights for p in products if part_of(model, p) == part) for part in PARTS}
        whole = sum(weights[part] * outcome.read_of_parts[part] for part in PARTS) / sum(weights.values())
        assert whole == pytest.approx(outcome.read.mean())
        if weighing != "price" and parts is PARTS:
            assert np.ptp(list(outcome.read_of_parts.values())) < 0.02


def test_one_pass_is_what_decoding_token_by_token_gives(measured):
    """Hugging Face's own cache, a token at a time, with the inputs below their thresholds set to 0."""
    model, products, worths = measured
    rule = make_rule(model, "price", worths, PARTS, 0.6)
    (outcome,) = compare(model, products, [rule], ROWS[:1], PROMPT)

    def skip(index, x):
        return torch.where(x.abs() >= rule.thresholds[index], x, 0)

    total, row = 0.0, ROWS[:1]
    with torch.no_grad():
        dense = torch.log_softmax(model(input_ids=row).logits[0], -1)
        cache = DynamicCache()
        model(input_ids=row[:, :PROMPT], past_key_values=cache, use_cache=True)
        for at in range(PROMPT, row.shape[1]):
            with input_hooks(products, skip):
                logits = model(input_ids=row[:, at : at + 1], past_key_values=cache, use_cache=True).logits[0, -1]
            total += float((dense[at].exp() * (dense[at] - torch.log_softmax(logits, -1))).sum())
    assert outcome.divergence[0] == pytest.approx(total / (row.shape[1] - PROMPT), rel=1e-3)
    assert math.isfinite(total)
    assert total > 0


def test_the_price_costs_less_than_equal_shares(measured):
    """The rule loses less than equal shares on text that it was not measured on."""
    model, products, _ = measured
    worths = weigh(model, products, ["price", "wina", "teal"], ROWS, PROMPT)
    heldout = torch.randint(1, VOCABULARY, (8, 20), generator=torch.Generator().manual_seed(5))
    rules = [make_rule(model, weighing, worths[weighing], PARTS, 0.7) for weighing in worths]
    costs = dict(
        zip(worths, (o.divergence.mean() for o in compare(model, products, rules, heldout, PROMPT)), strict=True)
    )
    assert costs["price"] < 0.8 * costs["wina"]
    assert costs["price"] < 0.8 * costs["teal"]
