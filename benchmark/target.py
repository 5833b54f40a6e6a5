"""A figure that was to be reached, and what was."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One figure that was to be reached.

    Args:
        what: Of what.
        wanted: At least this.
        reached: What was measured; None where it was not.
    """

    what: str
    wanted: float
    reached: float | None

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.reached is not None and self.reached >= self.wanted
