"""Adaptation, fitted on a model some of whose tokens were made easy, and on one where none are."""

import numpy as np
import pytest
import torch

from clada.exporter.calibration.adaptation import adapt
from clada.exporter.calibration.decode_pass import Decoded, Texts
from clada.exporter.calibration.policies import POLICIES, Policy, without
from clada.exporter.calibration.scale_map import FACTORS
from clada.exporter.model.patch import sparsify
from clada.exporter.model.steering import SiteSettings
from clada.ops import LOAD_SIGNAL
from clada.ops.torch import torch_op
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model

CLADA = POLICIES["clada"]
# Thresholds that about a third of the neurons pass.
SETTINGS = SiteSettings(tuple(torch.full((NEURONS,), 0.35) for _ in range(LAYERS)))
# Even tokens are the easy ones of `planted`.
ROWS, LENGTH, PROMPT = 24, 48, 12


def texts_for(model, rows: int = ROWS) -> Texts:
    """Runs of easy and of hard tokens."""
    generator = torch.Generator().manual_seed(1)
    hard = (torch.rand(rows, LENGTH, generator=generator) < 0.15).cumsum(1) % 2
    ids = 2 * torch.randint(0, VOCABULARY // 2, (rows, LENGTH), generator=generator) + hard
    sparsify(model)
    return Texts(model, ids, PROMPT)


def planted() -> Texts:
    """A model whose even tokens' embeddings share a component so large that the layers' outputs hardly count."""
    model = random_model("llama")
    direction = torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(0)), dim=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[::2] += 25 * direction
        # What follows them is less uncertain, so that entropy tells which kind of run a token is in.
        model.get_output_embeddings().weight[:8] += 0.3 * direction
    return texts_for(model)


def pools_for(texts: Texts) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(len(texts.rows), NEURONS, generator=generator) < 0.8 for _ in range(LAYERS)]


def used_pools(texts: Texts) -> list[torch.Tensor]:
    """The four fifths of the neurons that prompts used most: little is missed without the others."""
    best = [score.sum(0).topk(4 * NEURONS // 5).indices for score in texts.prompt_scores]
    return [torch.zeros(len(texts.rows), NEURONS, dtype=torch.bool).index_fill(1, index, True) for index in best]


def mean(values: torch.Tensor) -> float:
    return float(values.mean(dtype=torch.float64))


def price_of_bytes(texts: Texts, pools: list[torch.Tensor]) -> float:
    """Divergence for a share of the bytes, between the factors next to 1."""
    tighter, looser = texts.decode(SETTINGS, FACTORS[3], pools), texts.decode(SETTINGS, FACTORS[1], pools)
    return (mean(tighter.divergence) - mean(looser.divergence)) / (mean(looser.read) - mean(tighter.read))


def saved(texts: Texts, pools: list[torch.Tensor], adapted: Decoded) -> float:
    """The share of the divergence that is saved, once more bytes are paid for."""
    base = texts.decode(SETTINGS, pools=pools)
    paid = price_of_bytes(texts, pools) * (mean(adapted.read) - mean(base.read))
    return 1 - (mean(adapted.divergence) + paid) / mean(base.divergence)


def test_nothing_is_fitted_that_a_policy_does_not_ask_for():
    texts = planted()
    pools = pools_for(texts)
    adaptation = adapt(texts, SETTINGS, Policy("sensitivity", pool="blended"), pools)
    assert adaptation.gains == {}
    assert (adaptation.scale == 1).all()
    assert (adaptation.load_map.scale_knots == 1).all()
    assert adaptation.load_map.token_scale is None
    assert adaptation.anticipations == ()
    assert not adaptation.opened.any()
    assert adaptation.load_map.reanalysis_load > 1
    torch.testing.assert_close(
        adaptation.decode(texts, SETTINGS, pools).divergence, texts.decode(SETTINGS, pools=pools).divergence
    )


@pytest.mark.parametrize("policy", [without(CLADA, "reanalysis"), POLICIES["sats"]])
def test_where_no_token_is_harder_hardly_anything_is_scaled(policy):
    """Chance may leave a little, on text that was not fitted on too."""
    texts = texts_for(random_model("llama"))
    adaptation = adapt(texts, SETTINGS, policy, pools_for(texts))
    assert adaptation.gains
    assert all(0 <= gain < 0.002 for gain in adaptation.gains.values())
    assert (adaptation.scale - 1).abs().mean() < 0.02
    for anticipation in adaptation.anticipations:
        assert (anticipation.factors - 1).abs().mean() < 0.05


def test_load_map_is_of_quantiles_and_is_what_the_op_computes():
    """The load of a token as adaptation has it is the one that the graph's op gives for the same logits."""
    texts = planted()
    adaptation = adapt(texts, SETTINGS, without(without(CLADA, "reanalysis"), "anticipation"), pools_for(texts))
    base, load_map = texts.decode(SETTINGS, pools=pools_for(texts)), adaptation.load_map
    for knots, values in ((load_map.surprisal_knots, base.surprisal), (load_map.entropy_knots, base.entropy)):
        np.testing.assert_allclose(knots, np.quantile(values.numpy(), np.linspace(0, 1, len(knots))), rtol=1e-4)
    assert (load_map.scale_knots.diff() <= 0).all()
    assert load_map.scale_knots[0] > 1.1
    assert load_map.scale_knots[-1] < 0.95
    assert load_map.reanalysis_load > 1
    # Tokens of a known surprisal and entropy: two outcomes share what the one that came leaves.
    at = torch.tensor([[0.9, 0.05], [0.2, 0.7], [0.5, 0.2], [0.01, 0.5]])
    logits = torch.cat([at, 1 - at.sum(1, keepdim=True)], 1).log()
    surprisal = -at[:, 0].log()
    entropy = torch.special.entr(logits.exp()).sum(-1)
    knots = torch.linspace(0, 5, 33), torch.linspace(0, 1.2, 33)
    scale, load, *_ = torch_op(LOAD_SIGNAL)(
        logits, torch.zeros(4, dtype=torch.int64), *knots, load_map.scale_knots, load_map.surprisal_weight
    )
    w, grid = load_map.surprisal_weight, np.linspace(0, 1, 33)
    ranks = [np.interp(values, k, grid) for values, k in zip((surprisal, entropy), knots, strict=True)]
    expected = w * ranks[0] + (1 - w) * ranks[1]
    np.testing.assert_allclose(load, expected, atol=1e-5)
    np.testing.assert_allclose(scale, np.interp(expected, np.linspace(0, 1, 9), load_map.scale_knots), atol=1e-5)


def test_load_is_fitted_where_it_tells_hard_tokens():
    texts = planted()
    pools = pools_for(texts)
    policy = without(without(CLADA, "reanalysis"), "anticipation")
    adaptation = adapt(texts, SETTINGS, policy, pools)
    assert set(adaptation.gains) == {"load"}
    assert adaptation.gains["load"] > 0.01
    base, load_map = texts.decode(SETTINGS, pools=pools), adaptation.load_map
    w, grid = load_map.surprisal_weight, np.linspace(0, 1, 33)
    load = w * np.interp(base.surprisal, load_map.surprisal_knots, grid)
    load += (1 - w) * np.interp(base.entropy, load_map.entropy_knots, grid)
    np.testing.assert_allclose(adaptation.load, load, atol=1e-4)
    np.testing.assert_allclose(adaptation.scale, np.interp(load, np.linspace(0, 1, 9), load_map.scale_knots), atol=1e-3)
    decoded = adaptation.decode(texts, SETTINGS, pools)
    assert mean(decoded.read) < mean(base.read) + 0.002
    assert saved(texts, pools, decoded) > 0.01


def test_token_table_is_fitted_where_tokens_differ():
    """Hard tokens are given looser thresholds than easy ones, and unseen tokens those of the mean."""
    texts = planted()
    pools = pools_for(texts)
    adaptation = adapt(texts, SETTINGS, POLICIES["sats"], pools)
    table = adaptation.load_map.token_scale
    assert set(adaptation.gains) == {"token"}
    assert adaptation.gains["token"] > 0.01
    assert table.shape == (VOCABULARY,)
    assert torch.equal(adaptation.scale, table[texts.rows[:, PROMPT:]])
    assert table[::2].mean() > table[1::2].mean() + 0.05
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[texts.rows[:, PROMPT:].flatten()] = True
    assert not seen.all()
    assert len(table[~seen].unique()) == 1
    assert (adaptation.load_map.scale_knots == 1).all()
    assert saved(texts, pools, adaptation.decode(texts, SETTINGS, pools)) > 0.01


def test_anticipation_is_fitted_where_the_hidden_state_tells():
    texts = planted()
    pools = pools_for(texts)
    adaptation = adapt(texts, SETTINGS, without(CLADA, "reanalysis"), pools)
    (anticipation,) = adaptation.anticipations
    assert anticipation.site in (0, 1)
    assert adaptation.gains["anticipation"] > 0.03
    assert adaptation.anticipation_r2 > 0.5
    assert (anticipation.factors.diff() <= 0).all()
    assert (anticipation.knots.diff() > 0).all()
    decoded = adaptation.decode(texts, SETTINGS, pools)
    without_it = texts.decode(SETTINGS, adaptation.scale, pools, adaptation.opened)
    assert saved(texts, pools, decoded) > saved(texts, pools, without_it) + 0.03
    # What it predicts is the divergence without it.
    inputs: list[torch.Tensor] = []

    def take(layer: int, x: torch.Tensor) -> None:
        if layer == anticipation.site:
            inputs.append(x.clone())

    texts.decode(SETTINGS, adaptation.scale, pools, take=take)
    predicted = anticipation.predicted(torch.cat(inputs), adaptation.load)
    happened = without_it.divergence.clamp_min(1e-7).log()
    assert torch.corrcoef(torch.stack([predicted.flatten(), happened.flatten()]))[0, 1] > 0.8


def test_anticipation_needs_rows_to_be_checked_on():
    texts = texts_for(random_model("llama"), rows=3)
    adaptation = adapt(texts, SETTINGS, CLADA, pools_for(texts))
    assert "anticipation" not in adaptation.gains
    assert adaptation.anticipations == ()


@pytest.mark.parametrize(("choose", "shares"), [(pools_for, (0.2, 0.31)), (used_pools, (0.004, 0.02))])
def test_reanalysis_opens_pools_for_the_share_that_is_worth_most(choose, shares):
    """Of all shares of tokens that are tried, by load: the least divergence plus the price of the bytes."""
    texts = planted()
    pools = choose(texts)
    adaptation = adapt(texts, SETTINGS, without(CLADA, "anticipation"), pools)
    assert torch.equal(adaptation.opened, adaptation.load >= adaptation.load_map.reanalysis_load)
    price = price_of_bytes(texts, pools)

    def worth(opened: torch.Tensor) -> float:
        decoded = texts.decode(SETTINGS, adaptation.scale, pools, opened)
        return mean(decoded.divergence) + price * mean(decoded.read)

    chosen = worth(adaptation.opened)
    # Some are opened even where that is worth nothing: a pool that never opens never learns.
    for share in (0.005, 0.02, 0.1, 0.3):
        load = torch.quantile(adaptation.load.flatten(), 1 - share)
        assert chosen <= worth(adaptation.load >= load) + 1e-6
    assert shares[0] < adaptation.opened.float().mean() < shares[1]


def test_without_pools_there_is_nothing_to_open():
    texts = planted()
    adaptation = adapt(texts, SETTINGS, CLADA, None)
    assert not adaptation.opened.any()
    assert adaptation.load_map.reanalysis_load > 1
