"""Fits of a signal's worth: maps from planted data, probes and tables against plain linear algebra."""

import itertools

import numpy as np
import pytest
import torch

from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.probe import KNOTS, fit_probe, fit_table, knots_of, log_divergence
from clada.exporter.calibration.scale_map import FACTORS, _monotone, fit_scale_map

AT = np.linspace(0, 1, 9)
ROWS, TOKENS = 16, 96
seeds = pytest.mark.parametrize("seed", range(4))


def runs_for(hardness: np.ndarray, rng: np.random.Generator, saved: np.ndarray | float = 0.1) -> list[Decoded]:
    """Results of decoding if a token's divergence were its hardness times the factor's square, and noise.

    Args:
        hardness: f64[N, T].
        rng: Draws what makes tokens of the same hardness differ.
        saved: Share of the bytes that a factor of e saves.
    """
    of_its_own = np.exp(rng.normal(0, 0.5, hardness.shape))
    runs = []
    for factor in FACTORS:
        noise = np.exp(rng.normal(0, 0.2, hardness.shape))
        divergence = torch.from_numpy(0.01 * hardness * of_its_own * factor**2 * noise).float()
        read = torch.from_numpy(0.6 - saved * np.log(factor) * np.ones(hardness.shape)).float()
        none = divergence > 0
        runs.append(Decoded(divergence, none, read, read.unsqueeze(-1), divergence, divergence, none))
    return runs


def at_factors(runs: list[Decoded], name: str, factors: np.ndarray) -> np.ndarray:
    """A figure of each token f64[N, T] at a factor of its own, f64[N, T]: interpolated in the factor's logarithm."""
    values = np.stack([getattr(run, name).double().numpy() for run in runs], -1)
    above = np.clip(np.searchsorted(np.log(FACTORS), np.log(factors)), 1, len(FACTORS) - 1)
    low, high = np.log(FACTORS)[above - 1], np.log(FACTORS)[above]
    share = (np.log(factors) - low) / (high - low)
    below, beyond = (np.take_along_axis(values, i[..., None], -1)[..., 0] for i in (above - 1, above))
    return below + share * (beyond - below)


@seeds
def test_monotone_choice_is_the_cheapest(seed):
    rng = np.random.default_rng(seed)
    for bins, factors in ((1, 4), (2, 3), (4, 5), (5, 4)):
        costs = rng.normal(size=(bins, factors)) + 0.3 * np.arange(bins)[:, None] * np.arange(factors)
        ways = (w for w in itertools.product(range(factors), repeat=bins) if list(w) == sorted(w, reverse=True))
        best = min(ways, key=lambda way: costs[np.arange(bins), list(way)].sum())
        assert tuple(_monotone(costs)) == best


def test_monotone_choice_among_equals():
    assert (np.diff(_monotone(np.zeros((5, 4)))) <= 0).all()


@seeds
def test_a_planted_signal_is_found(seed):
    """Divergence d f^2 for bytes that fall with log f: the best factor is proportional to d^(-1/2)."""
    rng = np.random.default_rng(seed)
    signal = rng.uniform(0, 1, (ROWS, TOKENS))
    runs = runs_for(np.exp(2 * signal), rng)
    fit = fit_scale_map(signal, AT, runs)
    np.testing.assert_array_equal(fit.knots, AT)
    assert fit.factors == pytest.approx(np.exp(0.5 - AT), rel=0.15)
    # At the same bytes everything may cost the same then; before it was d.
    mean_root = np.exp(np.log(np.exp(2 * signal)).mean())
    assert fit.gain == pytest.approx(1 - mean_root / np.exp(2 * signal).mean(), abs=0.03)


@seeds
@pytest.mark.parametrize("kind", ["rising", "steep", "stepped", "cheap where hard", "dear where hard"])
def test_maps_are_monotone_and_never_read_more(seed, kind):
    rng = np.random.default_rng(seed)
    signal = rng.beta(0.5, 0.8, (ROWS, TOKENS))
    hardness = {"steep": np.exp(8 * signal), "stepped": np.where(signal > 0.9, 20.0, 1.0)}.get(kind, np.exp(3 * signal))
    saved = {"cheap where hard": 0.2 - 0.15 * signal, "dear where hard": 0.05 + 0.15 * signal}.get(kind, 0.1)
    runs = runs_for(hardness, rng, saved)
    fit = fit_scale_map(signal, AT, runs)
    assert (np.diff(fit.factors) <= 0).all()
    assert FACTORS[0] - 1e-9 <= fit.factors.min() < fit.factors.max() <= FACTORS[-1] + 1e-9
    given = fit.factors[np.abs(signal[..., None] - AT).argmin(-1)]
    reads = at_factors(runs, "read", given).mean()
    assert 0.595 < reads <= 0.6 + 1e-6
    assert at_factors(runs, "divergence", given).mean() < 0.99 * runs[2].divergence.mean()


@seeds
@pytest.mark.parametrize("kind", ["noise", "worse"])
def test_a_signal_that_tells_nothing_leaves_the_scale_alone(seed, kind):
    """Or one that is high where tokens are easy: load never tightens the thresholds."""
    rng = np.random.default_rng(seed)
    signal = rng.uniform(0, 1, (ROWS, TOKENS))
    hardness = np.exp(-3 * signal if kind == "worse" else 3 * rng.uniform(0, 1, signal.shape))
    fit = fit_scale_map(signal, AT, runs_for(hardness, rng))
    assert fit.gain == 0
    np.testing.assert_array_equal(fit.factors, np.ones(len(AT)))


def test_noise_is_not_claimed_as_a_gain():
    """Over many draws, maps fitted to noise save something on their own rows and nothing on others."""
    gains = []
    for seed in range(40):
        rng = np.random.default_rng(100 + seed)
        signal, other = rng.uniform(0, 1, (2, 4, 40))
        gains.append(fit_scale_map(signal, AT, runs_for(np.exp(3 * other), rng)).gain)
    assert np.mean(np.array(gains) > 0) < 0.5
    assert np.mean(gains) < 0.01


@seeds
def test_reading_more_on_other_rows_is_not_a_gain(seed):
    """A map that holds on half of the rows loosens nearly all of the others, where it tells nothing."""
    rng = np.random.default_rng(seed)
    signal = rng.uniform(0, 1, (ROWS, TOKENS))
    hardness = np.exp(2 * signal)
    signal[1::2] = 0.6 + 0.4 * signal[1::2]
    hardness[1::2] = 4.0
    fit = fit_scale_map(signal, AT, runs_for(hardness, rng))
    assert fit.gain == 0
    assert (fit.factors == 1).all()


@pytest.mark.filterwarnings("error")
def test_values_of_the_signal_that_cost_nothing_or_never_come():
    rng = np.random.default_rng(0)
    signal = rng.uniform(0, 0.8, (ROWS, TOKENS))
    fit = fit_scale_map(signal, AT, runs_for(np.where(signal < 0.3, 0, np.exp(3 * signal)), rng))
    assert (np.diff(fit.factors) <= 0).all()
    assert fit.factors[0] == pytest.approx(FACTORS[-1])
    assert fit.factors[-1] < 0.8


def test_no_divergence_is_nothing_to_gain():
    rng = np.random.default_rng(0)
    runs = runs_for(np.zeros((ROWS, TOKENS)), rng)
    fit = fit_scale_map(rng.uniform(0, 1, (ROWS, TOKENS)), AT, runs)
    assert fit.gain == 0
    assert (fit.factors == 1).all()


def ridge(features: np.ndarray, target: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Ridge regression on standardized features, as least squares with rows added for the penalty."""
    features, target = features.reshape(-1, features.shape[-1]), target.ravel()
    mean, deviation = features.mean(0), features.std(0, ddof=1)
    count = features.shape[1]
    rows = np.concatenate([(features - mean) / deviation, np.sqrt(penalty * len(target)) * np.eye(count)])
    weight = np.linalg.lstsq(rows, np.concatenate([target - target.mean(), np.zeros(count)]), rcond=None)[0]
    return weight / deviation, target.mean() - mean @ (weight / deviation)


@pytest.mark.parametrize(("noise", "penalty"), [(0.1, 0.03), (6.0, 1.0)])
def test_probe_is_ridge_regression_checked_on_the_other_half(noise, penalty):
    """Of the penalties the one that predicts other rows best; predictions of a row come from the other half."""
    rng = np.random.default_rng(1)
    features = rng.normal(1, 2, (10, 30, 40)) * rng.uniform(0.1, 3, 40)
    target = features @ rng.normal(size=40) / 10 + noise * rng.normal(size=(10, 30)) - 3
    weight, bias, predicted, explained = fit_probe(torch.from_numpy(features), torch.from_numpy(target))
    errors = {}
    for candidate in (0.03, 0.1, 0.3, 1.0):
        crossed = np.empty_like(target)
        for half in (0, 1):
            w, b = ridge(features[1 - half :: 2], target[1 - half :: 2], candidate)
            crossed[half::2] = features[half::2] @ w + b
        errors[candidate] = ((crossed - target) ** 2).mean()
        if candidate == penalty:
            np.testing.assert_allclose(predicted, crossed, rtol=1e-6, atol=1e-8)
            assert explained == pytest.approx(1 - errors[candidate] / target.var(ddof=1))
    assert min(errors, key=errors.__getitem__) == penalty
    expected = ridge(features, target, penalty)
    np.testing.assert_allclose(weight, expected[0], rtol=1e-6)
    assert bias == pytest.approx(expected[1])


def test_probe_recovers_a_planted_target():
    rng = np.random.default_rng(2)
    features, planted = torch.from_numpy(rng.normal(size=(12, 100, 8))), torch.from_numpy(rng.normal(size=8))
    target = features @ planted + 2 + 0.05 * torch.from_numpy(rng.normal(size=(12, 100)))
    weight, bias, _, explained = fit_probe(features, target)
    torch.testing.assert_close(weight, planted, rtol=0.05, atol=0.05)
    assert bias == pytest.approx(2, abs=0.05)
    assert explained > 0.99


def test_probe_of_noise_explains_nothing():
    """On the rows it is fitted on it would: there are half as many features as tokens."""
    rng = np.random.default_rng(3)
    features, target = torch.from_numpy(rng.normal(size=(4, 20, 40))), torch.from_numpy(rng.normal(size=(4, 20)))
    assert fit_probe(features, target)[3] < 0.1


def test_probe_needs_two_rows():
    with pytest.raises(ValueError, match="two are needed"):
        fit_probe(torch.zeros(1, 5, 2, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64))


def test_probe_of_tokens_that_are_all_alike_explains_nothing():
    features = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, _, predicted, explained = fit_probe(features, torch.full((4, 5), -3.0, dtype=torch.float64))
    assert explained == 0
    torch.testing.assert_close(predicted, torch.full_like(predicted, -3.0))


def test_table_is_of_shrunk_means():
    """By token id: (sum of deviations) / (count + 4); predictions by the other half's table."""
    rng = np.random.default_rng(4)
    tokens, target = rng.integers(0, 6, (7, 9)), rng.normal(3, 1, (7, 9))
    table, predicted = fit_table(torch.from_numpy(tokens), torch.from_numpy(target), 8)

    def expected(rows: list[int], token: int) -> float:
        values = [target[r, t] - target.mean() for r in rows for t in range(9) if tokens[r, t] == token]
        return target.mean() + sum(values) / (len(values) + 4)

    assert table.tolist() == pytest.approx([expected(list(range(7)), token) for token in range(8)])
    assert table[7] == pytest.approx(target.mean())
    for row in range(7):
        other = [r for r in range(7) if r % 2 != row % 2]
        assert predicted[row].tolist() == pytest.approx([expected(other, token) for token in tokens[row]])


def test_knots_are_quantiles_that_ascend():
    signal = torch.from_numpy(np.random.default_rng(5).normal(size=(20, 500)))
    knots = knots_of(signal)
    assert len(knots) == KNOTS == 9
    below = [(signal.numpy() <= knot).mean() for knot in knots]
    assert below == pytest.approx((np.arange(9) + 0.5) / 9, abs=1e-3)
    assert (np.diff(knots_of(torch.zeros(3, 4, dtype=torch.float64))) > 0).all()


def test_log_divergence_is_finite():
    """Rounding gives a divergence of 0, or one below it."""
    given = log_divergence(torch.tensor([-1e-6, 0.0, 1.0]))
    assert given.dtype == torch.float64
    assert torch.isfinite(given).all()
    assert given[2] == 0
