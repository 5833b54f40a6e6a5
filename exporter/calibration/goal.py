"""Goal of a calibration, and the search for the setting that meets it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from clada.contract.manifest import GoalName
from clada.errors import UnreachableError
from clada.exporter.calibration.decode_pass import Decoded

_STEPS = 14
# How near to the goal a search ends, as a share of it.
_CLOSE = 0.002
# How near to an end of what is left a search looks, as a share of it.
_MARGIN = 0.1


def _interpolated(from_aim_at_end: float, from_aim_at_other: float) -> float:
    """Share between two ends at which a straight line meets the goal, kept well inside, as curves bend away from it."""
    span = from_aim_at_end - from_aim_at_other
    return 0.5 if span == 0 else min(max(from_aim_at_end / span, _MARGIN), 1 - _MARGIN)


@dataclass(frozen=True)
class Goal:
    """A figure to meet.

    Args:
        name: One of the manifest's GOALS.
        value: Value to meet.
    """

    name: GoalName
    value: float

    def reached(self, decoded: Decoded) -> float:
        """Measured value of the goal's figure."""
        if self.name == "target_sparsity":
            return 1 - float(decoded.active.mean(dtype=torch.float64))
        figure = decoded.read if self.name == "ffn_cost" else decoded.divergence
        return float(figure.mean(dtype=torch.float64))

    def search(self, decode: Callable[[float], Decoded], low: float, high: float) -> float:
        """Search [low, high] for the setting nearest to the goal that exceeds no cost or budget and misses no sparsity.

        Args:
            decode: Function of a setting; the higher, the sparser the model.
            low: Lower end of the search.
            high: Upper end of the search.

        Raises:
            UnreachableError: No setting meets it.
        """
        # Of two settings that both meet it, the less sparse is the better one, except where errors are what is spent.
        spends_errors = self.name == "error_budget"

        def met(value: float) -> bool:
            return value >= self.value if self.name == "target_sparsity" else value <= self.value

        # Aimed at the middle of what is near enough, on the side that meets the goal.
        aim = self.value * (1 + (_CLOSE if self.name == "target_sparsity" else -_CLOSE) / 2)
        end = high if spends_errors else low
        at_end = self.reached(decode(end))
        if met(at_end):
            return end
        other = low if spends_errors else high
        at_other: float | None = None
        best: float | None = None
        nearest = at_end
        for _ in range(_STEPS):
            share = 0.5 if at_other is None else _interpolated(at_end - aim, at_other - aim)
            middle = end + share * (other - end)
            value = self.reached(decode(middle))
            nearest = min(nearest, value, key=lambda v: abs(v - self.value))
            if met(value):
                best, other, at_other = middle, middle, value
                if abs(value - self.value) <= _CLOSE * self.value:
                    break
            else:
                end, at_end = middle, value
        if best is None:
            raise UnreachableError(
                f"the {self.name.replace('_', ' ')} {self.value} cannot be reached by this policy: "
                f"the nearest is {nearest:.4f}"
            )
        return best
