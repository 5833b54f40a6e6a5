"""What a calibration is for, and the search for the setting that meets it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from clada.exporter.decode_pass import Decoded
from clada.plugins.errors import UnreachableError

_STEPS = 14
# How near to the goal a search ends, as a share of it.
_CLOSE = 0.002


@dataclass(frozen=True)
class Goal:
    """A figure to meet.

    Args:
        name: "target_sparsity", "ffn_cost" or "error_budget".
        value: What was asked for.
    """

    name: str
    value: float

    def reached(self, decoded: Decoded) -> float:
        """The figure, in the goal's own terms."""
        if self.name == "target_sparsity":
            return 1 - float(decoded.active.mean(dtype=torch.float64))
        figure = decoded.read if self.name == "ffn_cost" else decoded.divergence
        return float(figure.mean(dtype=torch.float64))

    def search(self, decode: Callable[[float], Decoded], low: float, high: float) -> float:
        """The setting in [low, high] that meets the goal most nearly, never exceeding cost, budget or missing sparsity.

        Args:
            decode: Function of a setting; the higher, the sparser the model.
            low: Where to begin.
            high: Where to end.

        Raises:
            UnreachableError: No setting meets it.
        """
        # Of two settings that both meet it, the less sparse is the better one, except where errors are what is spent.
        spends_errors = self.name == "error_budget"

        def met(value: float) -> bool:
            return value >= self.value if self.name == "target_sparsity" else value <= self.value

        end = high if spends_errors else low
        value = self.reached(decode(end))
        if met(value):
            return end
        other = low if spends_errors else high
        best: float | None = None
        nearest = value
        for _ in range(_STEPS):
            middle = (end + other) / 2
            value = self.reached(decode(middle))
            if met(value):
                best, other = middle, middle
                if abs(value - self.value) <= _CLOSE * self.value:
                    break
            else:
                end = middle
            nearest = min(nearest, value, key=lambda v: abs(v - self.value))
        if best is None:
            raise UnreachableError(
                f"the {self.name.replace('_', ' ')} {self.value} cannot be reached by this policy: "
                f"the nearest is {nearest:.4f}"
            )
        return best
