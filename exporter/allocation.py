"""Shares a mean sparsity out among the layers, given what sparsity costs in each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Sparsities at which a layer's cost is measured; the last is the most that a layer is given.
GRID: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.95)
_STEPS = 95


def cost_curve(cost: Floats) -> tuple[Floats, Floats]:
    """A layer's cost between the measured points: sparsities and costs, both [N], from 0 and in small steps.

    The square root is interpolated linearly: a divergence grows as the square of the error that causes it.
    """
    x = np.array([0.0, *GRID])
    fine = np.linspace(0, GRID[-1], _STEPS + 1)
    return fine, np.interp(fine, x, np.sqrt(np.maximum.accumulate([0.0, *cost]))) ** 2


def _lower_hull(x: Floats, y: Floats) -> Floats:
    """Lower convex hull of the points (x, y), x ascending, as an array [N, 2]."""
    hull: list[tuple[float, float]] = []
    for px, py in zip(x, y, strict=True):
        while len(hull) > 1:
            (ax, ay), (bx, by) = hull[-2:]
            if (by - ay) * (px - bx) < (py - by) * (bx - ax):
                break
            hull.pop()
        hull.append((float(px), float(py)))
    return np.array(hull)


def equal_marginal_cost(costs: Floats, mean: float) -> Floats:
    """The sparsities that minimise the summed cost at a mean sparsity.

    Each layer's cost is taken as the lower convex hull of its curve, and sparsity is given out where the next bit of
    it costs least: the exact minimum of a separable convex problem (a Lagrangian's solution).

    Args:
        costs: [L, len(GRID)], the cost of each layer at each sparsity of GRID; at 0 it is 0.
        mean: Mean sparsity wanted, at most GRID[-1].

    Returns:
        [L], a sparsity for each layer.
    """
    segments: list[tuple[float, int, float]] = []
    for layer, cost in enumerate(costs):
        hull = _lower_hull(*cost_curve(cost))
        widths, rises = np.diff(hull[:, 0]), np.diff(hull[:, 1])
        segments += [(rise / width, layer, width) for rise, width in zip(rises, widths, strict=True)]
    shares, left = np.zeros(len(costs)), mean * len(costs)
    for _, layer, width in sorted(segments):
        shares[layer] += min(width, left)
        left -= min(width, left)
    return shares


def equal_cost(costs: Floats, mean: float) -> Floats:
    """The sparsities at which all layers cost the same; arguments as of `equal_marginal_cost`."""
    x = np.array([0.0, *GRID])
    curves = [np.maximum.accumulate([0.0, *cost]) for cost in costs]

    def at(level: float) -> Floats:
        return np.array([np.interp(level, curve, x) for curve in curves])

    low, high = 0.0, max(float(curve[-1]) for curve in curves)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).mean() < mean else (low, middle)
    return at(high)


def uniform(costs: Floats, mean: float) -> Floats:
    """The same sparsity in each layer; arguments as of `equal_marginal_cost`."""
    return np.full(len(costs), mean)


@dataclass(frozen=True)
class Allocation:
    """A way to choose the layers' sparsities: the cost it looks at, and how it shares.

    Args:
        cost: "divergence" (KL of the model's output), "relative_error" (of the layer's own output) or None.
        share: Function of the costs [L, len(GRID)] and the mean sparsity that gives sparsities [L].
    """

    cost: str | None
    share: Callable[[Floats, float], Floats]


ALLOCATIONS: dict[str, Allocation] = {
    "kl": Allocation("divergence", equal_marginal_cost),
    "cett": Allocation("relative_error", equal_cost),
    "uniform": Allocation(None, uniform),
}
