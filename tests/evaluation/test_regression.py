"""Regression: it recovers the coefficients and variances of a synthetic table, and refuses tables it cannot fit."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clada.errors import CladaError
from clada.evaluation.regression import KL_FLOOR, active_share, log_kl, predicted, regress, write_regression
from clada.evaluation.regression_plot import regression_figure
from clada.evaluation.token_table import TokenTable, read_token_table

LAYERS, SEQUENCES, TOKENS = 12, 40, 100
NEURONS = 100_000  # so many that rounding to whole neurons is nothing
ACTIVE = {"surprisal": 0.04, "entropy": 0.02, "surprisal x entropy": 0.01, "position": -0.015}
KL = {"surprisal": 0.5, "entropy": 0.4, "surprisal x entropy": -0.2, "position": 0.0}
ACTIVE_DEVIATIONS = {"sequence": 0.02, "layer": 0.08, "residual": 0.05}
KL_DEVIATIONS = {"sequence": 0.5, "residual": 1.0}


def standard(values):
    return (values - values.mean()) / values.std()


def synthetic_table(seed: int = 0) -> TokenTable:
    """A table whose costs follow the coefficients above; log token frequency has none."""
    random = np.random.default_rng(seed)
    n = SEQUENCES * TOKENS
    sequence, position = np.divmod(np.arange(n), TOKENS)
    surprisal = 8 * random.beta(1.0, 2.0, n)  # bounded, so that no share is
    entropy = 0.4 * surprisal + 4 * random.beta(2.0, 3.0, n)
    z = {"surprisal": standard(surprisal), "entropy": standard(entropy), "position": standard(position)}
    z["surprisal x entropy"] = z["surprisal"] * z["entropy"]

    def of(coefficients, deviations):
        fixed = sum(value * z[name] for name, value in coefficients.items())
        return fixed + random.normal(0, deviations["sequence"], SEQUENCES)[sequence]

    layer = standard(np.arange(LAYERS)) * ACTIVE_DEVIATIONS["layer"]
    share = 0.5 + of(ACTIVE, ACTIVE_DEVIATIONS)[:, None] + layer
    share += random.normal(0, ACTIVE_DEVIATIONS["residual"], (n, LAYERS))
    kl = np.exp(-5 + of(KL, KL_DEVIATIONS) + random.normal(0, KL_DEVIATIONS["residual"], n))
    return TokenTable(
        sequence=sequence.astype(np.int32),
        position=position.astype(np.int32),
        token=random.zipf(1.4, n).clip(max=500).astype(np.int32),
        surprisal=surprisal.astype(np.float32),
        entropy=entropy.astype(np.float32),
        load=np.clip(surprisal / 10, 0, 1).astype(np.float32),
        kl=kl.astype(np.float32),
        agrees=np.ones(n, np.bool_),
        active=np.rint(share.clip(0, 1) * NEURONS).astype(np.int32),
        pool=np.full((n, LAYERS), NEURONS, np.int32),
        neurons=np.full(LAYERS, NEURONS, np.int32),
    )


@pytest.fixture(scope="module")
def table():
    return synthetic_table()


@pytest.fixture(scope="module")
def regression(table):
    return regress(table)


def variances(coefficients, deviations, table):
    """Of the predictors, of the groups and of the residual, as the table was made."""
    z = {"surprisal": standard(table.surprisal), "entropy": standard(table.entropy)}
    z |= {"surprisal x entropy": z["surprisal"] * z["entropy"], "position": standard(table.position)}
    fixed = sum(value * z[name] for name, value in coefficients.items()).var()
    groups = sum(value**2 for name, value in deviations.items() if name != "residual")
    return fixed, groups, deviations["residual"] ** 2


@pytest.mark.parametrize(
    ("which", "coefficients", "deviations"), [("active", ACTIVE, ACTIVE_DEVIATIONS), ("kl", KL, KL_DEVIATIONS)]
)
def test_known_coefficients_come_back(table, regression, which, coefficients, deviations):
    fit = getattr(regression, which)
    assert fit.converged
    found = {c.name: c for c in fit.coefficients}
    assert set(found) == {"intercept", "log token frequency", *coefficients}
    for name, value in {**coefficients, "log token frequency": 0.0}.items():
        assert abs(found[name].value - value) < 3 * found[name].standard_error, name
        assert found[name].low < found[name].value < found[name].high
    # The errors are those of so many rows with such a residual: neither a layer's nor a sequence's.
    assert found["position"].standard_error == pytest.approx(deviations["residual"] / np.sqrt(fit.rows), rel=0.1)
    for name, value in deviations.items():
        assert fit.deviations[name] == pytest.approx(value, rel=0.3), name
    fixed, groups, residual = variances(coefficients, deviations, table)
    total = fixed + groups + residual
    assert fit.marginal_r2 == pytest.approx(fixed / total, abs=0.05)
    assert fit.conditional_r2 == pytest.approx((fixed + groups) / total, abs=0.06)
    assert fit.plain_r2 == pytest.approx(fixed / total, abs=0.05)
    assert fit.conditional_r2 > fit.marginal_r2 + 0.1


def test_unrelated_costs_have_no_r2(table):
    """Each token with another's costs: what the groups and the predictors had to say is gone."""
    order = np.random.default_rng(1).permutation(len(table.token))
    fit = regress(replace(table, active=table.active[order], kl=table.kl[order]))
    assert fit.active.marginal_r2 < 0.01
    assert fit.kl.marginal_r2 < 0.01
    assert fit.kl.plain_r2 < 0.01
    assert fit.kl.deviations["sequence"] < 0.1 * fit.kl.deviations["residual"]


def test_predictions_are_those_of_the_coefficients(table, regression):
    error = log_kl(table) - predicted(regression.kl, regression, table)
    assert 1 - error.var() / log_kl(table).var() == pytest.approx(regression.kl.plain_r2, abs=0.01)
    assert predicted(regression.active, regression, table).mean() == pytest.approx(active_share(table).mean(), abs=0.01)


def test_a_corpus_decides_the_frequencies(table, regression):
    """Counts that are made to follow surprisal take its place; the table's own do not."""
    ids, places = np.unique(table.token, return_inverse=True)
    means = np.bincount(places, table.surprisal) / np.bincount(places)
    counts = dict(zip(ids.tolist(), np.rint(np.exp(means)).astype(int).tolist(), strict=True))
    other = regress(table, counts)
    assert other.centers["log token frequency"] != regression.centers["log token frequency"]
    assert other.centers["surprisal"] == regression.centers["surprisal"]


def test_a_large_table_is_drawn_from_by_the_seed(table):
    large = replace(
        table,
        **{
            name: np.concatenate([getattr(table, name)] * 2)
            for name in TokenTable.__dataclass_fields__
            if name != "neurons"
        },
    )
    first, again, other = (regress(large, seed=seed).kl for seed in (0, 0, 1))
    assert first.rows < len(large.token)
    assert first == again
    assert first.coefficients != other.coefficients


def test_no_divergence_is_taken_for_the_floor(table):
    kl = table.kl.copy()
    kl[::4] = -1e-8
    regression = regress(replace(table, kl=kl))
    assert regression.kl.deviations["sequence"] < 1
    assert regression.floored == pytest.approx(0.25)
    assert log_kl(replace(table, kl=kl)).min() == pytest.approx(np.log(KL_FLOOR))


def test_json_holds_everything(regression, tmp_path):
    write_regression(tmp_path / "out.json", regression)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["published_r2"] == 0.17
    assert read["active"]["marginal_r2"] == regression.active.marginal_r2
    assert read["kl"]["coefficients"][1]["standard_error"] == regression.kl.coefficients[1].standard_error


def test_plot_shows_the_binned_means(table, regression):
    figure = regression_figure(table, regression)
    assert [axes.get_xlabel()[:9] for axes in figure.axes] == ["", "", "surprisal", "entropy b"]
    assert [axes.get_ylabel()[-12:] for axes in figure.axes] == ["f layers (%)", "", "(ln of nats)", ""]
    for axes in figure.axes:
        # The fitted line runs through the means, since the table is made so.
        points = axes.containers[0].lines[0].get_ydata()
        line = axes.lines[-1].get_ydata()
        assert np.corrcoef(points, line)[0, 1] > 0.97


def test_a_table_is_read_back(table, tmp_path):
    path = tmp_path / "tokens.npz"
    np.savez(path, **vars(table))
    read = read_token_table(path)
    np.testing.assert_array_equal(read.active, table.active)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprisal": np.zeros(4000, np.float32)}, "surprisal is the same for all tokens"),
        ({"kl": np.full(4000, np.nan, np.float32)}, "the log of KL is not finite for 4000 tokens"),
        ({"sequence": np.zeros(4000, np.int32)}, "at least two sequences"),
    ],
)
def test_what_cannot_be_fitted_is_refused(table, change, message):
    with pytest.raises(CladaError, match=message):
        regress(replace(table, **change))


def test_too_few_tokens_are_refused(table):
    few = {name: getattr(table, name)[:20] for name in TokenTable.__dataclass_fields__ if name != "neurons"}
    with pytest.raises(CladaError, match="the table has 20 tokens; a regression needs at least"):
        regress(replace(table, **few))


def test_bad_tables_are_refused(table, tmp_path):
    path = tmp_path / "tokens.npz"
    with pytest.raises(CladaError, match="cannot read"):
        read_token_table(path)
    path.write_text("{}")
    with pytest.raises(CladaError, match="is not a table of tokens"):
        read_token_table(path)
    np.savez(path, token=table.token)
    with pytest.raises(CladaError, match="is not a table of tokens"):
        read_token_table(path)
    np.savez(path, **vars(replace(table, load=table.load[:7])))
    with pytest.raises(CladaError, match=r"load has the shape \[7\], expected \[4000\]"):
        read_token_table(path)
