"""Multi-level regressions of a token's cost on its difficulty."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from clada.contract.files import write
from clada.errors import CladaError
from clada.evaluation.token_table import TokenTable

PUBLISHED_R2 = 0.17
"""Of the multi-level regression that ties load to sparsity in the paper (arXiv 2502.19078)."""

KL_FLOOR = 1e-7
"""Nats below which float32 logits tell no divergence from none."""

INTERCEPT = "intercept"
INTERACTION = "surprisal x entropy"
# Time grows with the square of the rows: this many take some ten seconds.
_MOST_ROWS = 6000
_FEWEST_TOKENS = 100
_NORMAL_95 = 1.959964

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coefficient:
    """Coefficient of one predictor.

    Args:
        name: The predictor.
        value: Change of the response for one standard deviation of the predictor.
        standard_error: Standard error of the value.
        low: Lower end of its 95% confidence interval.
        high: Upper end of it.
    """

    name: str
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """One regression, with a random intercept for each group.

    Args:
        response: Explained variable, with its unit.
        rows: Observations.
        coefficients: The intercept and those of the predictors.
        deviations: Standard deviation of the intercepts by kind of group, and of the residual.
        marginal_r2: Share of the variance that the predictors explain (Nakagawa & Schielzeth 2013).
        conditional_r2: Share that the predictors and the groups explain.
        plain_r2: R² of ordinary least squares on the same rows and predictors, without groups.
        converged: Whether the optimizer says that it arrived.
    """

    response: str
    rows: int
    coefficients: tuple[Coefficient, ...]
    deviations: dict[str, float]
    marginal_r2: float
    conditional_r2: float
    plain_r2: float
    converged: bool


@dataclass(frozen=True)
class Regression:
    """Regressions of a token's cost on its difficulty.

    Args:
        active: Share of a layer's neurons that were computed, by token and layer.
        kl: Natural logarithm of the divergence from the dense model, by token.
        centers: Mean of each predictor over the table, in its own unit.
        scales: Standard deviation of each.
        tokens: Number of tokens of the table that were used.
        floored: Share of them whose divergence lies under KL_FLOOR and was taken for it.
        published_r2: PUBLISHED_R2, to stand beside.
        seed: Seed of the draw of the tokens, and of each one's layer.
    """

    active: Fit
    kl: Fit
    centers: dict[str, float]
    scales: dict[str, float]
    tokens: int
    floored: float
    published_r2: float
    seed: int


def _predictors(table: TokenTable, counts: Mapping[int, int] | None) -> dict[str, Floats]:
    """Predictors f64[n], each in its own unit."""
    if counts is None:
        _, places, occurrences = np.unique(table.token, return_inverse=True, return_counts=True)
        frequency = occurrences[places]
    else:
        # Tokens that the corpus lacks count as half a sighting.
        frequency = np.array([counts.get(int(token), 0) or 0.5 for token in table.token])
    return {
        "surprisal": table.surprisal.astype(np.float64),
        "entropy": table.entropy.astype(np.float64),
        "position": table.position.astype(np.float64),
        "log token frequency": np.log(frequency.astype(np.float64)),
    }


def _design(predictors: dict[str, Floats], centers: dict[str, float], scales: dict[str, float]) -> dict[str, Floats]:
    """Columns of the fixed effects: an intercept, standardized predictors, and the product of two of them."""
    standard = {name: (values - centers[name]) / scales[name] for name, values in predictors.items()}
    product = standard["surprisal"] * standard["entropy"]
    ones = np.ones(len(product))
    first = {INTERCEPT: ones, "surprisal": standard.pop("surprisal"), "entropy": standard.pop("entropy")}
    return first | {INTERACTION: product} | standard


def log_kl(table: TokenTable) -> Floats:
    """Natural logarithm f64[n] of each token's divergence in nats, at least that of KL_FLOOR."""
    return np.log(np.maximum(table.kl.astype(np.float64), KL_FLOOR))


def active_share(table: TokenTable) -> Floats:
    """Share f64[n, L] of the layer's neurons that were computed for each token."""
    return table.active / table.neurons.astype(np.float64)


def predicted(fit: Fit, regression: Regression, table: TokenTable, counts: Mapping[int, int] | None = None) -> Floats:
    """Prediction f64[n] of each token's response from the predictors alone."""
    design = _design(_predictors(table, counts), regression.centers, regression.scales)
    return np.sum([c.value * design[c.name] for c in fit.coefficients], axis=0)


def _indicators(groups: npt.NDArray[np.int32]) -> tuple[list[str], Floats]:
    """Names of the groups, and indicators f64[n, G], 1 where a row belongs to a group."""
    names, places = np.unique(groups, return_inverse=True)
    return [str(name) for name in names], np.eye(len(names))[places]


def _fit(response: str, y: Floats, design: dict[str, Floats], groups: dict[str, npt.NDArray[np.int32]]) -> Fit:
    """Fit a linear model with a random intercept per group, kinds of groups crossed, by restricted likelihood."""
    x = np.column_stack(list(design.values()))
    indicators = [_indicators(codes) for codes in groups.values()]
    # Crossed intercepts are variance components of one group that holds every row.
    components = VCSpec(list(groups), [[names] for names, _ in indicators], [[matrix] for _, matrix in indicators])
    model = MixedLM(y, x, groups=np.zeros(len(y)), exog_vc=components)
    with warnings.catch_warnings():
        # It also warns of a boundary wherever every random effect is a variance component.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # The methods that follow gradients stop where they start, or where a group's variance becomes 0, and call it
        # converged.
        result = model.fit(reml=True, method="powell")
    values, errors = np.asarray(result.fe_params), np.asarray(result.bse_fe)
    fixed, between = float((x @ values).var()), float(np.sum(result.vcomp))
    total = fixed + between + float(result.scale)
    least_squares = np.linalg.lstsq(x, y, rcond=None)[0]
    deviations = np.sqrt([*result.vcomp, result.scale]).tolist()
    return Fit(
        response=response,
        rows=len(y),
        coefficients=tuple(
            Coefficient(name, value, error, value - _NORMAL_95 * error, value + _NORMAL_95 * error)
            for name, value, error in zip(design, values.tolist(), errors.tolist(), strict=True)
        ),
        deviations=dict(zip([*groups, "residual"], deviations, strict=True)),
        marginal_r2=fixed / total,
        conditional_r2=(fixed + between) / total,
        plain_r2=float(1 - (y - x @ least_squares).var() / y.var()),
        converged=bool(result.converged),
    )


def _check(table: TokenTable, columns: dict[str, Floats]) -> None:
    if len(table.token) < _FEWEST_TOKENS:
        raise CladaError(f"the table has {len(table.token)} tokens; a regression needs at least {_FEWEST_TOKENS}")
    if len(np.unique(table.sequence)) < 2 or len(table.neurons) < 2:
        raise CladaError("a multi-level regression needs a table of at least two sequences and two layers")
    for name, values in columns.items():
        strange = int(np.sum(~np.isfinite(values)))
        if strange:
            raise CladaError(f"{name} is not finite for {strange} tokens of the table")
        if values.std() == 0:
            raise CladaError(f"{name} is the same for all tokens of the table, so there is nothing to regress")


def regress(table: TokenTable, counts: Mapping[int, int] | None = None, seed: int = 0) -> Regression:
    """Regress cost on difficulty: surprisal, entropy, their product, position and log token frequency.

    Predictors are standardized. Sequences and, for active neurons, layers are groups with random intercepts. Of each
    token one layer is drawn: its layers share all predictors, and counted as independent would make the errors small.

    Args:
        table: Cost of each token.
        counts: Number of occurrences of each token id in a corpus; the table's own counts where not given.
        seed: Seed of the draws; a table of many tokens is subsampled.

    Raises:
        CladaError: The table has too few tokens, sequences or layers, or a column that is constant or not finite.
    """
    predictors = _predictors(table, counts)
    share, divergence = active_share(table), log_kl(table)
    _check(table, {**predictors, "the active share": share.mean(axis=1), "the log of KL": divergence})
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(len(table.token))[:_MOST_ROWS])
    layers = random.integers(len(table.neurons), size=len(rows), dtype=np.int32)
    centers = {name: float(values.mean()) for name, values in predictors.items()}
    scales = {name: float(values.std()) for name, values in predictors.items()}
    design = {name: column[rows] for name, column in _design(predictors, centers, scales).items()}
    sequences = {"sequence": table.sequence[rows]}
    return Regression(
        active=_fit("share of a layer's neurons computed", share[rows, layers], design, sequences | {"layer": layers}),
        kl=_fit("natural logarithm of KL in nats", divergence[rows], design, sequences),
        centers=centers,
        scales=scales,
        tokens=len(rows),
        floored=float(np.mean(table.kl[rows] < KL_FLOOR)),
        published_r2=PUBLISHED_R2,
        seed=seed,
    )


def write_regression(path: Path, regression: Regression) -> None:
    """Write a regression as JSON.

    Raises:
        CladaError: The file cannot be written.
    """
    write(path, (json.dumps(asdict(regression), indent=1, allow_nan=False) + "\n").encode())
