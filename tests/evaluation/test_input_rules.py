"""Rules for inputs and neurons at equal bytes: TEAL's search, policies for neurons, and the reported figures."""

import itertools
import math

import numpy as np
import pytest
import torch

from clada.errors import UnreachableError
from clada.evaluation.input_rules import BLOCK, compare, dense_rule, make_rule, part_weights, weigh
from clada.evaluation.neuron_rules import NEURON_RULES, decode_neurons
from clada.evaluation.statistics import exp_mean
from clada.evaluation.teal_search import blocks_of, error, kept_shares, search
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.model.patch import sparsify
from clada.exporter.model.products import find_products
from clada.exporter.model.steering import SiteSettings
from tests.support.checkpoints import LAYERS, VOCABULARY, random_model

PROMPT, LEAST, STEP = 8, 0.3, 0.04
ROWS = torch.randint(1, VOCABULARY, (8, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "opt"])
def searched(request):
    """Model, the worth of its inputs by size, and the paths of its blocks."""
    model = random_model(request.param)
    worths = weigh(model, find_products(model), ["teal"], ROWS, PROMPT)["teal"]
    return model, worths, search(model, worths, ROWS, PROMPT, LEAST, STEP)


def test_the_search_takes_as_much_at_each_step_until_its_target(searched):
    _, _, paths = searched
    assert len(paths) == LAYERS
    for path in paths:
        assert path.read[0] == 1
        np.testing.assert_allclose(np.diff(path.read), -STEP, rtol=1e-6)
        assert LEAST - STEP - 1e-9 <= path.read[-1] <= LEAST
        # From one product at a time.
        assert ((np.diff(path.kept, axis=0) < 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize("share", [0.75, 0.5, 0.31])
def test_the_search_loses_less_of_a_blocks_output_than_equal_shares(searched, share):
    model, worths, paths = searched
    for block, path in zip(blocks_of(model, worths, ROWS, PROMPT), paths, strict=True):
        kept = path.at(share)
        assert kept @ block.shares() == pytest.approx(share)
        with torch.no_grad():
            dense = block.output([None] * len(kept))
            ways = [
                [block.threshold(index, one) for index, one in enumerate(shares)]
                for shares in (kept, [share] * len(kept))
            ]
            losses = [error(block.output(thresholds), dense) for thresholds in ways]
        assert 0 < losses[0] <= losses[1]


def test_a_block_by_itself_is_what_the_model_computes(searched):
    """Its output is the input of the next one; prompts are not included."""
    model, worths, _ = searched
    blocks = blocks_of(model, worths, ROWS, PROMPT)
    for block, after in itertools.pairwise(blocks):
        following = after.args[0] if after.args else after.kwargs["hidden_states"]
        with torch.no_grad():
            output = block.output([None] * len(block.worths))
        torch.testing.assert_close(output, following[:, PROMPT:].flatten(0, 1))


def test_the_searched_rule_reads_its_share_of_the_whole_model(searched):
    model, worths, paths = searched
    products = find_products(model)
    weights = part_weights(model, products)
    share = (0.5 * (weights["ffn"] + weights["attention"]) + weights["output"]) / sum(weights.values())
    rule = make_rule(model, "teal", worths, BLOCK, share, paths)
    assert rule.name == "teal greedy: ffn + attention"
    assert rule.share == pytest.approx(share, abs=5e-3)
    assert rule.thresholds[-1] is None
    (outcome,) = compare(model, products, [rule], ROWS, PROMPT)
    # A model with ReLUs has fewer inputs to read than it has.
    assert outcome.read.mean() == pytest.approx(share, abs=0.04)
    assert len(kept_shares(paths, 0.5)) == len(products) - 1


@pytest.mark.parametrize("name", NEURON_RULES)
def test_neurons_read_the_share_of_the_whole_model(name):
    model = random_model("llama")
    weights = part_weights(model, find_products(model))
    sparsify(model)
    texts = Texts(model, ROWS, PROMPT)
    outcome = decode_neurons(name, weights, 0.8, texts, texts)
    assert outcome.read.mean() == pytest.approx(0.8, abs=0.01)
    assert outcome.read_of_parts["attention"] == outcome.read_of_parts["output"] == 1
    of_ffn = 1 - 0.2 * sum(weights.values()) / weights["ffn"]
    assert outcome.read_of_parts["ffn"] == pytest.approx(of_ffn, abs=0.02)
    assert outcome.divergence.mean() > 0
    # A rule leaves nothing behind for the next.
    again = decode_neurons("griffin", weights, 0.8, texts, texts)
    assert (again.divergence == decode_neurons("griffin", weights, 0.8, texts, texts).divergence).all()
    whole = texts.decode(SiteSettings())
    assert whole.divergence.abs().max() < 1e-5


def test_gates_are_always_read():
    """A third of a gated network, and all else: the pool's rules can read less."""
    model = random_model("llama")
    weights = part_weights(model, find_products(model))
    sparsify(model)
    texts = Texts(model, ROWS, PROMPT)
    share = (sum(weights.values()) - 0.8 * weights["ffn"]) / sum(weights.values())
    with pytest.raises(UnreachableError, match=r"^cats cannot read \d+% of all weights: "):
        decode_neurons("cats", weights, share, texts, texts)
    assert decode_neurons("griffin", weights, share, texts, texts).read.mean() == pytest.approx(share, abs=0.02)
    with pytest.raises(UnreachableError, match=r"^griffin cannot read 20% of all weights: "):
        decode_neurons("griffin", weights, 0.2, texts, texts)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_perplexity_and_accuracy_of_the_dense_model_are_hugging_faces(family):
    """Its own loss, where only the tokens that follow the first decoded one are labels."""
    model = random_model(family)
    products = find_products(model)
    (outcome,) = compare(model, products, [dense_rule(products)], ROWS, PROMPT)
    labels = ROWS.clone()
    labels[:, : PROMPT + 1] = -100
    with torch.no_grad():
        whole = model(input_ids=ROWS, labels=labels)
    assert float(exp_mean(outcome.nll)) == pytest.approx(math.exp(float(whole.loss)), rel=1e-5)
    hits = whole.logits[:, PROMPT:-1].argmax(-1) == ROWS[:, PROMPT + 1 :]
    np.testing.assert_allclose(outcome.accuracy, hits.double().mean(1).numpy())


def test_neurons_and_inputs_agree_on_the_dense_model():
    """The two ways of decoding, where nothing is skipped."""
    model = random_model("llama")
    products = find_products(model)
    (dense,) = compare(model, products, [dense_rule(products)], ROWS, PROMPT)
    sparsify(model)
    decoded = Texts(model, ROWS, PROMPT).decode(SiteSettings())
    np.testing.assert_allclose(decoded.surprisal[:, 1:].double().mean(1).numpy(), dense.nll, rtol=1e-5)
    np.testing.assert_allclose(decoded.foreseen[:, 1:].double().mean(1).numpy(), dense.accuracy)
