"""Jobs of the scheduler: one text each, and the events by which it tells of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from clada.runtime.generation import Choice, GenerationConfig, Guide, Piece
from clada.server.logprobs import Logprobs


@dataclass(frozen=True)
class PromptRead:
    """A job's prompt was read; `reused` of its tokens had been read before."""

    reused: int


@dataclass(frozen=True)
class Generated:
    """A token was generated; of the last one the piece says how the text ended."""

    piece: Piece
    logprobs: Logprobs | None


@dataclass(frozen=True)
class Failed:
    """A job ended without an answer: the server failed or is stopping, or the request's guide cannot be followed."""

    reason: str
    kind: Literal["error", "stopping", "request"] = "error"


Event = PromptRead | Generated | Failed


@dataclass(eq=False)
class Job:
    """One text to generate.

    Args:
        prompt: Token ids.
        choice: Method of choosing its tokens.
        config: When to stop.
        effort: Factor on the thresholds, where inputs are skipped.
        emit: Takes its events, in the scheduler's thread; must neither block nor fail.
        guide: Rule of which tokens may come; None where any may.
        logprobs: Number of likeliest tokens to tell of with each token; None for no log probabilities.
        arrived: When it was asked for, by the monotonic clock.
        begun: Whether its first token was given out.
        canceled: Set by whoever wants no more of it.
    """

    prompt: list[int]
    choice: Choice
    config: GenerationConfig
    effort: float
    emit: Callable[[Event], None]
    guide: Guide | None = None
    logprobs: int | None = None
    arrived: float = field(default_factory=time.monotonic)
    begun: bool = False
    canceled: bool = False
