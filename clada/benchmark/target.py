"""A figure that was to be reached, and what was."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One figure that was to be reached.

    Args:
        what: Of what.
        wanted: At least this.
        reached: What was measured; None where it was not.
        at_most: Whether it was to be this at most instead.
    """

    what: str
    wanted: float
    reached: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.reached is None:
            return False
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted
