"""Calibration by one price: the worth of every byte, the gain of the load, and the measured loss at several prices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.contract.dial import DialPoint, effort_for
from clada.errors import UnreachableError
from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.input_pass import Run, decode_each
from clada.exporter.calibration.input_probes import Foresight, fit_foresight, probed_products, read_densely
from clada.exporter.calibration.load_fit import LOAD_KNOTS, fit_load, load_by, load_map_of, loads_of, scale_by, to_float
from clada.exporter.calibration.price import Worth, by_sensitivity, measure, price_of, sensitivities
from clada.exporter.calibration.probe import FEWEST_ROWS
from clada.exporter.calibration.rows import CalibrationRows
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.products import Product

# Shares of all weights that are measured, whatever the goal: they make the dial of an artifact.
SHARES = (0.85, 0.7, 0.55, 0.45)
# Where the load's map is fitted: the share whose prices, and factors on its thresholds, are tried.
_FITTED_AT = 0.6
_FIT_FACTORS = (0.5, 1.0, 2.0)
# Shares nearer than this are one.
_NEAR = 0.005


@dataclass(frozen=True)
class Rung:
    """Measurements at one price on the calibration text.

    Args:
        effort: Its root: thresholds are proportional to it.
        read: Share of all weights that a token read.
        divergence: KL divergence from the dense model, nats per token.
        agreement: Share of tokens whose most likely successor is the dense model's.
        kept: Share of the inputs that were kept, for each product.
    """

    effort: float
    read: float
    divergence: float
    agreement: float
    kept: tuple[float, ...]


@dataclass(frozen=True)
class PriceCalibration:
    """Measurements from which an artifact of any share of bytes is made.

    Args:
        worths: Worth of each product's inputs.
        load_map: Constants of the load signal.
        rungs: Prices that were tried, from the lowest; the first is nothing: all but zeros is kept.
        tokens: Tokens that were measured, the dense prompts not counted.
        prompt_tokens: Tokens of each row that were read densely, as a prompt is.
        gains: Share of the divergence that the load's map saves, and that anticipations save beside it, as estimated
            on text that they were not fitted on.
        anticipations: Probes that refine the scale.
        explained: Explained variance of each, see `Foresight`.
    """

    worths: list[Worth]
    load_map: LoadMap
    rungs: list[Rung]
    tokens: int
    prompt_tokens: int
    gains: dict[str, float]
    anticipations: Sequence[Anticipation]
    explained: list[float]


@dataclass(frozen=True)
class PriceChoice:
    """Chosen price, and the measurements at it.

    Args:
        price: Nats per weight.
        thresholds: f32[D] of each product.
        kept: Share of the inputs that were kept, for each product.
        dial: Measurements at other prices, as efforts relative to this one; this one among them.
        chosen: The point of this one.
    """

    price: float
    thresholds: list[Tensor]
    kept: list[float]
    dial: list[DialPoint]
    chosen: DialPoint


def calibrate_price(
    model: Any,
    products: Sequence[Product],
    rows: CalibrationRows,
    prompt_tokens: int,
    goals: Sequence[float],
    load: bool = True,
    anticipation: bool = True,
) -> PriceCalibration:
    """Measure the worth of inputs, fit the adaptation of the scale, and try prices.

    Args:
        model: A causal LM in float32, not patched.
        products: Products of the model.
        rows: Calibration tokens.
        prompt_tokens: Tokens at the start of each row that are read densely.
        goals: Shares of all weights to be read, which are tried beside SHARES.
        load: Whether the scale follows the load.
        anticipation: Whether it follows what is to come too; with the load only.
    """
    measured = sensitivities(model, products, rows.decoded, prompt_tokens)
    factors = [by_sensitivity(product, value) for product, value in zip(products, measured, strict=True)]
    worths = measure(model, products, factors, rows.decoded, prompt_tokens)

    def thresholds(price: float) -> list[Tensor | None]:
        return [worth.thresholds(price) for worth in worths]

    def decode(runs: list[Run]) -> list[Decoded]:
        return decode_each(model, products, runs, rows.decoded, prompt_tokens)

    level = thresholds(price_of(worths, _FITTED_AT))
    tried = decode([Run(level, factor) for factor in (_FIT_FACTORS if load else (1.0,))])
    base = tried[len(tried) // 2]
    loads = loads_of(base)
    weight, knots, gains = 0.5, np.ones(LOAD_KNOTS), {}
    if load:
        weight, fit = fit_load(loads, tried, _FIT_FACTORS)
        knots, gains["load"] = fit.factors, fit.gain
    load_map = load_map_of(loads, weight, knots)
    loads_there = load_by(load_map, base)
    scale = scale_by(load_map, loads_there)
    foresight = Foresight([], [], 0.0)
    if load and anticipation and len(rows.decoded) >= FEWEST_ROWS:
        sites = probed_products(products)
        inputs, entropy = read_densely(model, products, sites, rows.whole, prompt_tokens)
        foresight = fit_foresight(inputs, entropy, loads_there, scale, tried, _FIT_FACTORS)
        gains["anticipation"] = foresight.gain

    prices = [price_of(worths, share) for share in _shares(goals)]
    steering = scale, foresight.anticipations, to_float(loads_there)
    decoded = decode([Run(thresholds(price), *steering) for price in prices])
    rungs = [_free(worths), *(_rung(price, outcome) for price, outcome in zip(prices, decoded, strict=True))]
    return PriceCalibration(
        worths=worths,
        load_map=load_map,
        rungs=_falling(rungs),
        tokens=base.divergence.numel(),
        prompt_tokens=prompt_tokens,
        gains=gains,
        anticipations=foresight.anticipations,
        explained=foresight.explained,
    )


def _shares(goals: Sequence[float]) -> list[float]:
    """Shares to try, from the largest: the usual ones and the requested ones, none of which may come last."""
    least = min([*goals, *SHARES])
    others = [share for share in SHARES if all(abs(share - goal) > _NEAR for goal in goals)]
    below = [0.9 * least] if least <= SHARES[-1] and least in goals else []
    return sorted({*goals, *others, *below}, reverse=True)


def _free(worths: Sequence[Worth]) -> Rung:
    """Rung of price zero: the dense model, which reads all but the rows of inputs that are 0."""
    kept = tuple(worth.unskipped() for worth in worths)
    weights = [worth.product.weights for worth in worths]
    return Rung(0.0, float(np.average(kept, weights=weights)), 0.0, 1.0, kept)


def _rung(price: float, decoded: Decoded) -> Rung:
    return Rung(
        effort=float(np.sqrt(price)),
        read=float(decoded.read.mean(dtype=torch.float64)),
        divergence=float(decoded.divergence.mean(dtype=torch.float64)),
        agreement=float(decoded.agrees.double().mean()),
        kept=tuple(decoded.active.mean((0, 1), dtype=torch.float64).tolist()),
    )


def _falling(rungs: Sequence[Rung]) -> list[Rung]:
    """Rungs that read less than the one before: a model that skips much by itself has none for the larger shares."""
    kept = [rungs[0]]
    for rung in rungs[1:]:
        if rung.read < kept[-1].read and rung.effort > kept[-1].effort:
            kept.append(rung)
    return kept


def choose(calibration: PriceCalibration, share: float) -> PriceChoice:
    """Choose the price at which a token reads a share of all weights, on the calibration text.

    Raises:
        UnreachableError: No price that was tried reads so little, or the model reads less by itself.
    """
    rungs = calibration.rungs
    most, least = rungs[0].read, rungs[-1].read
    if not least <= share < most:
        raise UnreachableError(
            f"no price that was measured reads {share:.1%} of the weights' bytes: the lowest reads {most:.1%}, the "
            f"highest {least:.1%}"
        )
    effort = effort_for(share, [(rung.effort, rung.read) for rung in rungs])
    price = effort**2

    def at(values: Sequence[float]) -> float:
        return float(np.interp(effort, [rung.effort for rung in rungs], values))

    chosen = DialPoint(1.0, share, _divergence_at(effort, rungs), at([rung.agreement for rung in rungs]))
    points = [DialPoint(rung.effort / effort, rung.read, rung.divergence, rung.agreement) for rung in rungs]
    others = [point for point in points if abs(point.effort - 1) > _NEAR]
    return PriceChoice(
        price=price,
        thresholds=[worth.thresholds(price) for worth in calibration.worths],
        kept=[at([rung.kept[index] for rung in rungs]) for index in range(len(calibration.worths))],
        dial=sorted([chosen, *others], key=lambda point: point.effort),
        chosen=chosen,
    )


def _divergence_at(effort: float, rungs: Sequence[Rung]) -> float:
    """Interpolate between two rungs by a power of the effort, as divergence grows much faster than linearly."""
    paid = [rung for rung in rungs if rung.divergence > 0]
    if not paid or effort <= paid[0].effort:
        return float(np.interp(effort, [rung.effort for rung in rungs], [rung.divergence for rung in rungs]))
    logarithms = np.log([[rung.effort, rung.divergence] for rung in paid])
    return float(np.exp(np.interp(np.log(effort), *logarithms.T)))
