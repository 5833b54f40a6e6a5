"""Metrics of the server, as Prometheus reads them."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from clada.runtime.generation import Piece
from clada.server.jobs import Event, Failed, Generated, Job

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of a server; those of texts are counted by its scheduler."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "clada_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self._texts = Counter("clada_texts", "Texts by how they ended", ["finish"], registry=self.registry)
        self._tokens = Counter("clada_tokens", "Tokens, of prompts and generated", ["kind"], registry=self.registry)
        self._reused = Counter(
            "clada_prefix_tokens_reused", "Tokens of prompts that were read before", registry=self.registry
        )
        self._first = Histogram(
            "clada_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._read = Summary(
            "clada_bytes_read_share", "Share of the bytes that each generated token read", registry=self.registry
        )

    def watch(self, running: Callable[[], int], waiting: Callable[[], int], kept: Callable[[], int]) -> None:
        """Have gauges of the slots in use, of the texts that wait, and of the tokens in the prefix cache."""
        for name, says, value in (
            ("clada_slots_in_use", "Texts that go on", running),
            ("clada_texts_waiting", "Texts that wait for a slot", waiting),
            ("clada_prefix_cache_tokens", "Tokens that the prefix cache has room for", kept),
        ):
            Gauge(name, says, registry=self.registry).set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def prompt_read(self, tokens: int, reused: int) -> None:
        """Count the tokens of a prompt, and those of it that had been read before."""
        self._tokens.labels("prompt").inc(tokens)
        self._reused.inc(reused)

    def generated(self, job: Job, piece: Piece) -> None:
        """Count a token."""
        if not job.begun:
            job.begun = True
            self._first.observe(time.monotonic() - job.arrived)
        if piece.stats is not None:
            self._tokens.labels("generated").inc()
            self._read.observe(piece.stats.read_fraction)

    def ended(self, event: Event | None) -> None:
        """Count a text that has ended; without an event, as nobody wanted more of it."""
        finish = "canceled"
        if isinstance(event, Generated):
            finish = event.piece.finish or finish
        elif isinstance(event, Failed):
            finish = event.kind
        self._texts.labels(finish).inc()

    def text(self) -> bytes:
        """Metrics in Prometheus' text format."""
        return generate_latest(self.registry)
