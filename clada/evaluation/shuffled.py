"""Control experiment: each token is given the load of another token, so that it carries no information."""

import numpy as np

from clada.evaluation.session_subject import SessionSubject
from clada.evaluation.subject import Floats
from clada.runtime import Session, TokenStats
from clada.runtime.steps import State

_SEED = 0


class ShuffledLoad(SessionSubject):
    """An artifact whose load comes from a token that was read before; of a policy without anticipation.

    Args:
        session: The loaded artifact.
        name: Name in tables.
    """

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(session, name)
        self._random = np.random.default_rng(_SEED)
        self._seen: list[tuple[Floats, int]] = []

    def step(self, state: State, token: int) -> list[TokenStats]:
        """Read one token, under the logits of another step in which this token stands where that one's did."""
        self._seen.append((state.logits[0].copy(), token))
        logits, other = self._seen[self._random.integers(len(self._seen))]
        logits = logits.copy()
        logits[[token, other]] = logits[[other, token]]
        state.logits = logits[None]
        return super().step(state, token)
