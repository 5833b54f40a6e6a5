"""Selection of neurons: thresholds and pools follow their formulas, checked on values of the dense model."""

import numpy as np
import pytest
import torch

from clada.contract.pool import PoolPolicy
from clada.exporter.calibration import decode_pass
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.goal import Goal
from clada.exporter.calibration.policies import PARTS, POLICIES, Policy, without
from clada.exporter.calibration.selection import Measured, measure, pool_policy, pools_of, select
from clada.exporter.calibration.sensitivity import sensitivities
from clada.exporter.model.patch import sparsify
from clada.exporter.model.steering import SiteSettings, steered
from tests.support.checkpoints import VOCABULARY, random_model, tiny_tokenizer
from tests.support.demo_model import patched_demo, rows_for

CLADA = POLICIES["clada"]


@pytest.fixture(scope="module")
def demo() -> Texts:
    model, rows, _ = patched_demo(4)
    return Texts(model, rows, 32)


def tiny(family: str) -> Texts:
    model = random_model(family)
    sparsify(model)
    return Texts(model, rows_for(tiny_tokenizer(), 6 * 48, 48), 16)


def dense_values(texts: Texts) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Activations a of each layer, and the factors that multiply them, f64[N, S, F], in a pass of the dense model."""
    values = []

    def take(index: int, x: torch.Tensor) -> None:
        values.append(tuple(v.double() for v in texts.layers[index].activations(x.reshape(*texts.rows.shape, -1))))

    handles = [layer.register_forward_pre_hook(lambda m, args: take(m.index, args[0])) for layer in texts.layers]
    with torch.no_grad(), steered(texts.model):
        texts.model(texts.rows)
    for handle in handles:
        handle.remove()
    return values


def shares_of(h: torch.Tensor) -> torch.Tensor:
    """h_i^2 / |h|^2 of each token."""
    return h.square() / h.square().sum(-1, keepdim=True)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_measured_is_of_decoded_tokens_of_the_dense_model(family):
    texts = tiny(family)
    measured = measure(texts, CLADA)
    sensitivity = sensitivities(texts.model, texts.batches, texts.prompt_tokens)
    for index, (a, up) in enumerate(dense_values(texts)):
        a, up = a[:, 16:].flatten(0, 1), up[:, 16:].flatten(0, 1)
        torch.testing.assert_close(measured.prior[index], shares_of(a * up).mean(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(measured.importance[index], sensitivity[index].activation.sqrt())
        weight = sensitivity[index].unit
        torch.testing.assert_close(measured.weight[index].double(), weight / weight.mean(), rtol=1e-5, atol=0)
        cost = (a * measured.importance[index]).square() / 2
        # Up to a bin of the histogram, an eighth of a power of ten.
        middle = float(cost[cost > 0].median())
        share, _ = measured.histograms[index].above(middle)
        assert (cost > middle * 10**0.125).double().mean() <= share.mean() <= (cost > middle).double().mean()
        assert measured.histograms[index].tokens == len(a)
        assert measured.histograms[index].sums.sum() == pytest.approx(float(cost.sum()), rel=1e-4)


@pytest.mark.parametrize("goal", [Goal("ffn_cost", 0.6), Goal("target_sparsity", 0.6), Goal("error_budget", 0.005)])
def test_cats_thresholds_are_quantiles_of_each_layer(demo, goal):
    thresholds, pool = select(demo, POLICIES["cats"], goal)
    assert pool is None
    below = []
    for threshold, (a, _) in zip(thresholds, dense_values(demo), strict=True):
        assert len(threshold.unique()) == 1
        below.append(float((a[:, 32:].abs() < threshold).double().mean()))
    assert below == pytest.approx([np.mean(below)] * len(below), abs=0.01)
    assert np.ptp([float(t[0]) for t in thresholds]) > 0.01
    if goal.name != "error_budget":
        # A gate's matrix is read whole, the two others where a neuron is active.
        assert np.mean(below) == pytest.approx(0.6, abs=0.02)
    assert goal.reached(demo.decode(SiteSettings(thresholds))) == pytest.approx(goal.value, rel=0.02)


@pytest.mark.parametrize("allocation", [True, False])
def test_thresholds_are_a_level_over_sensitivity(demo, allocation):
    """threshold_i c_i is the same for all neurons: of the model with allocation, of each layer without."""
    policy = Policy("sensitivity", allocation=allocation)
    thresholds, pool = select(demo, policy, Goal("target_sparsity", 0.6))
    assert pool is None
    importance = measure(demo, policy).importance
    levels = [(t * c).tolist() for t, c in zip(thresholds, importance, strict=True)]
    for level in levels:
        assert level == pytest.approx([level[0]] * len(level), rel=1e-4)
    means = np.mean(levels, axis=1)
    assert (np.ptp(means) / means.mean() < 1e-4) == allocation
    active = demo.decode(SiteSettings(thresholds)).active.mean((0, 1))
    assert 0.37 < active.mean() <= 0.4
    assert (float(active.max() - active.min()) < 0.05) != allocation


def test_a_neuron_that_adds_nothing_is_dropped_first():
    texts = tiny("llama")
    with torch.no_grad():
        texts.layers[1].w_down[3] = 0
    thresholds, _ = select(texts, Policy("sensitivity", allocation=True), Goal("target_sparsity", 0.3))
    for threshold in thresholds:
        assert torch.isfinite(threshold).all()
    assert thresholds[1][3] > 1e30


def test_griffins_pool_is_what_the_prompt_used_most(demo):
    """The published rule: the top-k of the norm over the prompt's tokens of |h_i| / |h|, the same k in each layer."""
    thresholds, chosen = select(demo, POLICIES["griffin"], Goal("ffn_cost", 0.6))
    assert all(not threshold.any() for threshold in thresholds)
    size = chosen.sizes[0]
    assert chosen.sizes == [size] * len(demo.layers)
    assert size / demo.layers[0].neurons == pytest.approx(0.6, abs=0.01)
    for pool, (a, up) in zip(pools_of(chosen, demo), dense_values(demo), strict=True):
        score = shares_of((a * up)[:, :32]).sum(1)
        for row in range(len(pool)):
            assert set(pool[row].nonzero().flatten().tolist()) == set(score[row].topk(size).indices.tolist())


def blended(measured: Measured, texts: Texts, sizes: list[int], prior_tokens: float) -> list[torch.Tensor]:
    """The top neurons of (prompt's score + prior) * weight, bool[N, F] by layer."""
    pools = []
    for score, prior, weight, size in zip(texts.prompt_scores, measured.prior, measured.weight, sizes, strict=True):
        if prior_tokens == float("inf"):
            rank = (prior * weight).expand(score.shape)
        else:
            rank = (score + prior_tokens * prior) * weight
        pools.append(torch.zeros(score.shape, dtype=torch.bool).scatter(1, rank.topk(size).indices, True))
    return pools


@pytest.mark.parametrize("prior_tokens", [0.0, 32.0, float("inf")])
def test_pools_blend_the_prompts_use_with_the_calibrations(demo, prior_tokens):
    measured = measure(demo, CLADA)
    policy = pool_policy(measured, [0.5, 0.3, 1.0, 0.8, 0.0, 0.25], "blended", prior_tokens)
    assert policy.sizes == [352, 211, 704, 563, 1, 176]
    for given, expected in zip(
        pools_of(policy, demo), blended(measured, demo, policy.sizes, prior_tokens), strict=True
    ):
        assert given.sum() == expected.sum()
        # But for a neuron that rounding puts on the other side.
        assert (given != expected).sum() <= 2


def test_calibrations_pool_is_the_same_for_all_prompts(demo):
    measured = measure(demo, CLADA)
    pools = pools_of(pool_policy(measured, [0.5] * 6, "calibration", 0.0), demo)
    for pool, expected in zip(pools, blended(measured, demo, [352] * 6, float("inf")), strict=True):
        assert (pool == pool[0]).all()
        assert (pool != expected).sum() <= 2 * len(pool)


def test_the_priors_weight_keeps_most_of_what_matters(monkeypatch):
    """Of the weights that are tried, the one whose pools hold the most gain above the price of reading it."""
    monkeypatch.setattr(decode_pass, "_LOGITS_IN_FLIGHT", 2 * VOCABULARY * 48)
    texts = tiny("llama")
    assert len(texts.batches) == 3
    thresholds, chosen = select(texts, CLADA, Goal("ffn_cost", 0.55))
    measured = measure(texts, CLADA)
    level = float(thresholds[0][0] * measured.importance[0][0])
    gains = []
    for (a, _), importance in zip(dense_values(texts), measured.importance, strict=True):
        gains.append(((a[:, 16:] * importance).square() / 2 - level**2 / 2).clamp_min(0).sum(1))

    def kept(prior_tokens: float) -> float:
        pools = blended(measured, texts, chosen.sizes, prior_tokens)
        return sum(float((gain * pool).sum()) for gain, pool in zip(gains, pools, strict=True))

    tried = {prior_tokens: kept(prior_tokens) for prior_tokens in (0.0, 8.0, 32.0, 128.0, 512.0, float("inf"))}
    assert chosen.prior_tokens == max(tried, key=tried.__getitem__)
    assert sorted(tried.values())[-2] < 0.9995 * max(tried.values())


def test_pools_are_chosen_as_the_policy_says():
    texts, goal = tiny("llama"), Goal("ffn_cost", 0.5)
    thresholds, pool = select(texts, POLICIES["dense"], goal)
    assert pool is None
    assert not any(threshold.any() for threshold in thresholds)

    def pool_of(policy: Policy) -> PoolPolicy | None:
        return select(texts, policy, goal)[1]

    assert pool_of(without(CLADA, "pool")) is None
    assert pool_of(without(CLADA, "prompt")).prior_tokens == float("inf")
    assert pool_of(CLADA).prior_tokens < float("inf")
    assert len(set(pool_of(CLADA).sizes)) > 1
    assert len(set(pool_of(without(CLADA, "allocation")).sizes)) == 1


def test_every_part_can_be_taken_away():
    for part in PARTS:
        assert without(CLADA, part) != CLADA
    assert len({without(CLADA, part) for part in PARTS}) == len(PARTS)
    assert without(CLADA, "compensation") == Policy("sensitivity", True, "blended", False, "load", True, True)
