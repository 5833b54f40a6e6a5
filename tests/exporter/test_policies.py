"""Every policy on the demo model, at the same bytes: the goal it reaches, and its loss on other text."""

import functools

import pytest
import torch

from clada.errors import UnreachableError
from clada.exporter.calibration.calibrate import Calibration, CalibrationConfig, calibrate
from clada.exporter.calibration.policies import POLICIES, without
from clada.exporter.model.anticipation import Anticipation
from tests.support.demo_model import patched_demo
from tests.support.token_by_token import Read, read_rows

COST = 0.6
PROMPT = 32


@pytest.fixture(scope="module")
def outcome():
    """A function from the name of a policy, or of a part that `clada` is without, to what comes of it."""
    model, rows, other = patched_demo()
    rows = rows[:4]

    @functools.cache
    def of(name: str) -> tuple[Calibration, list[torch.Tensor], Anticipation | None, Read]:
        policy = POLICIES[name] if name in POLICIES else without(POLICIES["clada"], name)
        result = calibrate(model, rows, CalibrationConfig(ffn_cost=COST, policy=policy, name=name))
        read = read_rows(model, result.calibrated, other[:8], PROMPT, policy=result)
        return result, list(result.calibrated.thresholds), result.calibrated.anticipations, read

    return of


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("dense", "price")])
def test_the_cost_is_reached_and_not_exceeded(outcome, name):
    result, _, _, read = outcome(name)
    assert 0.98 * COST <= result.ffn_cost <= COST
    # And as a session would read other text, token by token.
    assert float(read.read.mean()) == pytest.approx(COST, abs=0.02)
    assert result.divergence > 1e-4
    assert 0.5 < result.agreement < 1


def test_dense_computes_everything(outcome):
    result, thresholds, anticipation, read = outcome("dense")
    assert result.ffn_cost == 1
    assert result.divergence == pytest.approx(0, abs=1e-6)
    assert result.agreement == 1
    assert result.pools is None
    assert not anticipation
    assert all(not threshold.any() for threshold in thresholds)
    assert all(layer.realised == 0 and layer.pool == 1 for layer in result.layers)
    assert read.divergence.max() < 1e-4
    assert (read.active == 1).all()


def test_rivals_have_what_they_are_described_with(outcome):
    cats, thresholds, _, _ = outcome("cats")
    assert cats.pools is None
    assert cats.gains == {}
    assert all(len(threshold.unique()) == 1 for threshold in thresholds)
    griffin, thresholds, _, read = outcome("griffin")
    assert len({layer.pool for layer in griffin.layers}) == 1
    assert griffin.pools.prior_tokens == 0
    assert all(not threshold.any() for threshold in thresholds)
    assert read.active.std() < 1e-3
    sats, _, anticipation, _ = outcome("sats")
    assert sats.calibrated.load_map.token_scale.shape == (4096,)
    assert set(sats.gains) == {"token"}
    assert not anticipation


def test_clada_has_its_parts(outcome):
    result, thresholds, _, _ = outcome("clada")
    assert {"load", "anticipation"} <= set(result.gains)
    assert result.calibrated.load_map.token_scale is None
    assert result.calibrated.load_map.reanalysis_load <= 1
    assert len({layer.pool for layer in result.layers}) > 1
    assert all(len(threshold.unique()) > 600 for threshold in thresholds)


@pytest.mark.parametrize(
    ("name", "ratio"), [("cats", 0.6), ("griffin", 0.1), ("compensation", 0.85), ("allocation", 0.85)]
)
def test_clada_diverges_less_at_the_same_cost(outcome, name, ratio):
    """Than its rivals and than itself without a part, decoding text that it was not calibrated on."""
    ours, theirs = outcome("clada")[-1], outcome(name)[-1]
    assert ours.read.mean() <= theirs.read.mean() + 0.006
    assert ours.divergence.mean() < ratio * theirs.divergence.mean()


def test_a_pool_pays_where_little_may_be_read():
    """Near the third that the gate's matrix would be if it were read whole."""
    model, rows, other = patched_demo()
    divergence = {}
    still = without(POLICIES["clada"], "load")
    for name, policy in (("with", still), ("without", without(still, "pool"))):
        result = calibrate(model, rows[:4], CalibrationConfig(ffn_cost=0.4, policy=policy))
        read = read_rows(model, result.calibrated, other[:8], PROMPT, policy=result)
        assert float(read.read.mean()) == pytest.approx(0.4, abs=0.02)
        divergence[name] = float(read.divergence.mean())
    assert divergence["with"] < 0.7 * divergence["without"]


def test_a_cost_below_what_is_always_read_is_refused():
    """Without a pool the gate's matrix is read whole: a third."""
    model, rows, _ = patched_demo(1)
    with pytest.raises(
        UnreachableError, match=r"the ffn cost 0\.2 cannot be reached by this policy: the nearest is 0\.3[34]"
    ):
        calibrate(model, rows, CalibrationConfig(ffn_cost=0.2, policy=POLICIES["cats"]))
