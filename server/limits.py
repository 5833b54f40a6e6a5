"""Limits of the server: what one request may ask for, and how long it may take to ask."""

from dataclasses import dataclass

# Of one request, in the schema that is served.
MOST_CHOICES = 16
MOST_PROMPTS = 16
MOST_MESSAGES = 1024
MOST_FIELDS = 64  # of an object
MOST_STOPS = 16
LONGEST_STOP = 256  # characters
MOST_LOGPROBS = 20
LONGEST_REGEX = 10_000  # characters
LONGEST_SCHEMA = 100_000  # characters, as JSON


@dataclass(frozen=True)
class Limits:
    """Limits that the command line sets, and those of time.

    Args:
        body: Bytes of a request.
        body_seconds: Time in which they must have come.
        prompt: Tokens of a prompt; None for as many as the model's context has.
        output: Tokens of an answer; None likewise.
        guide_seconds: Time in which a grammar must have been compiled.
        stop_seconds: Time that texts have to end in when the server stops.
        connections: Connections at a time.
    """

    body: int = 1 << 20
    body_seconds: float = 30.0
    prompt: int | None = None
    output: int | None = None
    guide_seconds: float = 2.0
    stop_seconds: float = 10.0
    connections: int = 512
