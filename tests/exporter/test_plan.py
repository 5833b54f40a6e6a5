"""Plan at one price of a row, against all other choices; and the search for the setting that meets a goal."""

import itertools

import numpy as np
import pytest
import torch

from clada.errors import UnreachableError
from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.goal import Goal
from clada.exporter.calibration.plan import CostHistogram, level_of, plan, predicted_cost, threshold

# Costs and prices lie on powers that no bin of a histogram separates otherwise than they do: results are exact.
STEP = 0.125


def power(exponent: np.ndarray | float) -> np.ndarray | float:
    """Costs: a little below an edge."""
    return 10 ** (np.asarray(exponent) * STEP - 0.01)


def price_above(exponent: float) -> float:
    """A price just above the cost of the same exponent."""
    return float(10 ** (exponent * STEP - 0.005))


def drawn_costs(rng: np.random.Generator, tokens: int, neurons: int, center: int = -40) -> np.ndarray:
    """f64[T, F]: neurons of very different use, and tokens that use them differently."""
    exponent = center + rng.integers(-12, 13, neurons) + rng.integers(-14, 15, (tokens, neurons))
    return power(exponent)


def histogram(costs: np.ndarray) -> CostHistogram:
    """Counted in two parts, as batches are."""
    result = CostHistogram.empty(costs.shape[1])
    half = len(costs) // 2
    for part in (costs[:half], costs[half:]):
        result.add(torch.from_numpy(part).float())
    return result


def test_histogram_tells_how_often_and_how_much():
    costs = drawn_costs(np.random.default_rng(0), 50, 7)
    for exponent in (-70, -45, -40, -31, 0):
        price = price_above(exponent)
        share, gain = histogram(costs).above(price)
        np.testing.assert_allclose(share, (costs > price).mean(0), atol=1e-12)
        np.testing.assert_allclose(gain, np.maximum(costs - price, 0).mean(0), rtol=1e-5, atol=1e-12)


def test_histogram_takes_costs_beyond_its_bins():
    counted = histogram(np.array([[0.0, 1e30], [1e-25, 1e9]]))
    share, gain = counted.above(1e-3)
    assert share.tolist() == [0.0, 1.0]
    assert gain[0] == 0
    assert gain[1] == pytest.approx(5e29, rel=1e-5)


@pytest.mark.parametrize("matrices", [2, 3])
@pytest.mark.parametrize("with_pool", [False, True])
def test_a_plan_is_the_cheapest_choice(matrices, with_pool):
    """Of all pools and, for each token, all sets of kept neurons in it: the least cost plus price times rows."""
    rng = np.random.default_rng(matrices)
    tokens, neurons = 6, 5
    sizes = set()
    for exponent in range(-52, -22, 3):
        costs = drawn_costs(rng, tokens, neurons)
        active_price = price_above(exponent)
        price = active_price / (matrices - 1)
        chosen = plan([histogram(costs)], price, matrices, with_pool=with_pool, allocation=True)

        def total(pool, costs=costs, active_price=active_price, price=price) -> float:
            kept = np.array(
                [min(active_price, cost) if i in pool else cost for row in costs for i, cost in enumerate(row)]
            )
            return kept.sum() / tokens + price * (len(pool) if with_pool else 0)

        everything = tuple(range(neurons))
        pools = [p for size in range(neurons + 1) for p in itertools.combinations(everything, size)]
        best = min(pools if with_pool else [everything], key=total)
        size = round(chosen.pool_shares[0] * neurons)
        sizes.add(size)
        # The pool's size is the best's (never empty), and what the level keeps is what costs more than its rows.
        assert size == max(len(best), 1)
        importance = rng.uniform(0.5, 2, neurons)
        activation = np.sqrt(2 * costs) / importance
        kept = activation >= threshold(chosen.levels[0], torch.from_numpy(importance)).numpy()
        np.testing.assert_array_equal(kept, costs >= active_price)
        assert chosen.levels[0] == pytest.approx(np.sqrt(2 * price * (matrices - 1)))
    assert sizes == ({1, 2, 3, 4, 5} if with_pool else {5})


def test_pool_membership_is_gain_above_the_price():
    """A neuron is in the pool where its mean saving, less the rows read for it, is worth its inward row's price."""
    rng = np.random.default_rng(3)
    costs = [drawn_costs(rng, 40, 60, center) for center in (-52, -44)]
    price = price_above(-41) / 2
    chosen = plan([histogram(c) for c in costs], price, 3, with_pool=True, allocation=True)
    expected = [(np.maximum(c - 2 * price, 0).mean(0) >= price).mean() for c in costs]
    assert 0.05 < expected[0] < expected[1] < 0.95
    assert chosen.pool_shares == pytest.approx(expected)


def test_without_allocation_all_layers_are_alike():
    """The same share of pool and of kept neurons as with it, on the mean, but in each layer."""
    rng = np.random.default_rng(4)
    costs = [drawn_costs(rng, 100, 40, center) for center in (-48, -40, -34)]
    histograms = [histogram(c) for c in costs]
    price = price_above(-40) / 2
    shared, alike = (plan(histograms, price, 3, with_pool=True, allocation=a) for a in (True, False))
    assert len(set(shared.levels)) == 1
    assert len(set(shared.pool_shares)) == 3
    assert alike.pool_shares == pytest.approx([np.mean(shared.pool_shares)] * 3)
    mean = np.mean([(c > 2 * price).mean() for c in costs])
    kept = [(np.sqrt(2 * c) >= level).mean() for c, level in zip(costs, alike.levels, strict=True)]
    assert kept == pytest.approx([mean] * 3, abs=0.05)
    assert alike.levels[0] < alike.levels[1] < alike.levels[2]


def test_level_keeps_a_share():
    values = np.abs(np.random.default_rng(5).normal(size=(2000, 3)))
    counted = histogram(values**2 / 2)
    for share in (0.05, 0.3, 0.5, 0.9):
        assert (values >= level_of(counted, share)).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("with_pool", [False, True])
@pytest.mark.parametrize("matrices", [2, 3])
def test_predicted_cost_counts_rows(matrices, with_pool):
    rng = np.random.default_rng(6)
    costs = [drawn_costs(rng, 30, neurons, center) for neurons, center in ((20, -42), (35, -38))]
    active_price = price_above(-42)
    price = active_price / (matrices - 1)
    rows = 0.0
    for layer in costs:
        inside = np.maximum(layer - active_price, 0).mean(0) >= price if with_pool else np.ones(layer.shape[1], bool)
        rows += inside.sum() + (matrices - 1) * (layer > active_price)[:, inside].mean(0).sum()
    predicted = predicted_cost([histogram(c) for c in costs], price, matrices, with_pool)
    assert predicted == pytest.approx(rows / (matrices * 55))


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_neuron_that_adds_nothing_gets_a_finite_threshold(sparsity):
    """Scale 0 times an infinite threshold would be NaN."""
    given = threshold(sparsity, torch.tensor([0.0, 0.5, 1e-60], dtype=torch.float64))
    assert given.dtype == torch.float32
    assert torch.isfinite(given).all()
    assert given[1] == 2 * sparsity
    assert not sparsity or (given[[0, 2]] > 1e30).all()


def decoded(sparsity: float = 0.0, cost: float = 1.0, divergence: float = 0.0) -> Decoded:
    """Two tokens that differ, of the given means."""
    around = torch.tensor([[0.9, 1.1]])
    return Decoded(
        divergence=divergence * around,
        agrees=torch.ones(1, 2, dtype=torch.bool),
        read=cost * around,
        active=(1 - sparsity) * around.unsqueeze(-1).expand(1, 2, 3),
        surprisal=around,
        entropy=around,
        foreseen=torch.ones(1, 2, dtype=torch.bool),
    )


def rising(setting: float) -> Decoded:
    """Sparser and worse with the setting, in [0, 1]."""
    return decoded(sparsity=setting**2, cost=1 - 0.7 * setting**2, divergence=0.3 * setting**3)


@pytest.mark.parametrize(
    ("name", "value", "exact"),
    [
        ("target_sparsity", 0.49, 0.7),
        ("ffn_cost", 1 - 0.7 * 0.49, 0.7),
        ("error_budget", 0.3 * 0.343, 0.7),
        ("target_sparsity", 0.01, 0.1),
        ("error_budget", 0.3 * 0.001, 0.1),
        ("ffn_cost", 0.301, (0.699 / 0.7) ** 0.5),
    ],
)
def test_search_comes_near_from_the_right_side(name, value, exact):
    """Never less sparse, costlier or worse than asked for, and not much better."""
    goal = Goal(name, value)
    setting = goal.search(rising, 0.0, 1.0)
    reached = goal.reached(rising(setting))
    assert (reached >= value) if name == "target_sparsity" else (reached <= value)
    assert reached == pytest.approx(value, rel=0.0021)
    assert setting == pytest.approx(exact, abs=0.01)


def test_reached_is_the_mean_in_the_goals_terms():
    figures = decoded(sparsity=0.25, cost=0.5, divergence=0.125)
    assert Goal("target_sparsity", 0.9).reached(figures) == pytest.approx(0.25)
    assert Goal("ffn_cost", 0.9).reached(figures) == pytest.approx(0.5)
    assert Goal("error_budget", 0.9).reached(figures) == pytest.approx(0.125)


def test_a_budget_that_all_settings_keep_is_spent_on_the_sparsest():
    assert Goal("error_budget", 5.0).search(rising, 0.0, 1.0) == 1.0


def test_a_goal_that_is_met_at_once_costs_nothing_more():
    """A model that is sparse by itself, as with ReLU, is not made sparser than it must be."""
    assert Goal("target_sparsity", 0.3).search(lambda s: decoded(sparsity=0.5 + s / 2), 0.0, 1.0) == 0.0
    assert Goal("ffn_cost", 0.6).search(lambda s: decoded(cost=0.5 - s / 4), 0.0, 1.0) == 0.0


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [("ffn_cost", 0.2, "0.30"), ("target_sparsity", 1.1, r"(0\.99|1\.0)"), ("error_budget", -1.0, "0.0000")],
)
def test_goals_out_of_reach_are_refused_with_the_nearest(name, value, nearest):
    words = name.replace("_", " ")
    with pytest.raises(
        UnreachableError, match=f"the {words} {value} cannot be reached by this policy: the nearest is {nearest}"
    ):
        Goal(name, value).search(rising, 0.0, 1.0)
