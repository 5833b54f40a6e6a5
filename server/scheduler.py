"""Scheduler: one thread reads the texts of all requests, together, and takes new ones in order of arrival."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from clada.errors import CladaError
from clada.runtime.batch import can_gather, gather
from clada.runtime.generation import GuideError, Piece, Text
from clada.runtime.prefix import Prefix
from clada.runtime.session import Session
from clada.runtime.steps import State
from clada.server.crossover import Crossover, measure_crossover
from clada.server.jobs import Event, Failed, Generated, Job, PromptRead
from clada.server.logprobs import Logprobs, logprobs_of
from clada.server.metrics import Metrics
from clada.server.places import Places
from clada.server.prefixes import PrefixCache, read_in_parts

_LOG = logging.getLogger(__name__)
# Tokens of a prompt that are read between two steps of the texts that go on.
_PART = 512
_STOPPING = "the server is stopping"


@dataclass(eq=False)
class _Running:
    """Text that goes on: its job, and where it stands.

    Args:
        job: Its job.
        text: Chooses its tokens.
        state: State that it is in, perhaps with others.
        row: Its place among those.
        token: The token that it goes on with.
        logprobs: Those of the token.
    """

    job: Job
    text: Text
    state: State
    row: int = 0
    token: int = 0
    logprobs: Logprobs | None = None


class Scheduler:
    """Scheduler of the texts of a session, in a thread of its own.

    In each round every text that goes on reads one token: short ones in one batch, where the session can gather texts,
    others in turns. Between two rounds a part of one new prompt is read, so that texts go on while prompts come.

    Args:
        session: The session; nothing else uses it.
        slots: The most texts that go on at a time.
        queue: The most texts that wait.
        prefix_tokens: Tokens of earlier prompts that are kept.
        metrics: Counts.
        part: Tokens of a prompt that are read at a time.
        crossover: Length up to which texts are decoded as a batch; measured where None.

    Raises:
        CladaError: The model cannot be loaded.
    """

    def __init__(
        self,
        session: Session,
        *,
        slots: int,
        queue: int,
        prefix_tokens: int = 0,
        metrics: Metrics | None = None,
        part: int = _PART,
        crossover: Crossover | None = None,
    ) -> None:
        self.places = Places(slots + queue)
        self._session, self._slots, self._part = session, slots, part
        self._metrics = metrics or Metrics()
        self._gathers = can_gather(session)
        # It loads both graphs: now, and not when a second text comes.
        self._crossover = crossover or (measure_crossover(session) if self._gathers and slots > 1 else Crossover(0))
        self._prefixes = PrefixCache(session, prefix_tokens if self._gathers else 0)
        self._waiting: deque[Job] = deque()
        self._running: list[_Running] = []
        self._changed = threading.Condition()
        self._reading: tuple[Job, Iterator[State | None], int] | None = None
        self._stop_at: float | None = None
        self._metrics.watch(lambda: len(self._running), lambda: len(self._waiting), lambda: self._prefixes.tokens)
        self._thread = threading.Thread(target=self._run, name="clada scheduler", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether texts are read: its thread runs, and is not being stopped."""
        return self._thread.is_alive() and self._stop_at is None

    def submit(self, job: Job) -> None:
        """Have a job's text generated in its turn; its place was taken before, and is given back at its end."""
        with self._changed:
            if self._stop_at is None:
                self._waiting.append(job)
                self._changed.notify()
                return
        self._end(job, Failed(_STOPPING, "stopping"))

    def cancel(self, job: Job) -> None:
        """Want no more of a job; it ends with the step that is being read."""
        job.canceled = True

    def stop(self, seconds: float) -> None:
        """Take no new jobs, end those that wait, and those that go on after so many seconds; does not wait for it."""
        with self._changed:
            self._stop_at = min(self._stop_at or float("inf"), time.monotonic() + seconds)
            self._changed.notify()

    def join(self) -> None:
        """Wait until all has ended, once `stop` was called."""
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            self._drop()
            self._admit()
            if self._running:
                self._round()
        for job in [running.job for running in self._running] + list(self._waiting):
            self._end(job, Failed(_STOPPING, "stopping"))
        if self._reading is not None:
            self._end(self._reading[0], Failed(_STOPPING, "stopping"))
        self._running, self._reading = [], None
        self._waiting.clear()

    def _wait(self) -> bool:
        """Wait until there is work; False once there is to be no more."""
        with self._changed:
            while not (self._waiting or self._running or self._reading or self._stop_at):
                self._changed.wait()
            if self._stop_at is None:
                return True
            refused = list(self._waiting)
            self._waiting.clear()
        for job in refused:
            self._end(job, Failed(_STOPPING, "stopping"))
        return bool(self._running or self._reading) and time.monotonic() < self._stop_at

    def _end(self, job: Job, event: Event | None) -> None:
        """Give a job's place back, with its last event."""
        self.places.give_back()
        self._metrics.ended(event)
        if event is not None:
            job.emit(event)

    def _admit(self) -> None:
        """Read a part of the next prompt, if there is a slot for its text."""
        if self._reading is None:
            with self._changed:
                if not self._waiting or len(self._running) >= self._slots:
                    return
                job = self._waiting.popleft()
            prefix, alike = self._prefixes.find(job.prompt)
            self._reading = job, self._read(job, prefix, alike), alike
        job, parts, alike = self._reading
        if job.canceled:
            self._reading = None
            self._end(job, None)
            return
        try:
            state = next(parts)
            if state is None:
                return
            self._session.steer(state, job.effort)
            running = _Running(job, Text(self._session, job.choice, job.prompt, job.config, job.guide), state)
        except Exception as error:
            self._reading = None
            self._end(job, _failure(error))
            return
        self._reading = None
        self._running.append(running)
        self._metrics.prompt_read(len(job.prompt), alike)
        job.emit(PromptRead(alike))

    def _read(self, job: Job, prefix: Prefix, alike: int) -> Iterator[State | None]:
        if not self._gathers:
            yield self._session.prefill([job.prompt])
            return
        for state in read_in_parts(self._session, prefix, alike, job.prompt, self._part):
            if state is not None:
                self._prefixes.keep(job.prompt, state)
            yield state

    def _drop(self) -> None:
        """Let go of the texts that nobody wants any more."""
        for running in [running for running in self._running if running.job.canceled]:
            self._running.remove(running)
            self._end(running.job, None)
        with self._changed:
            unwanted = [job for job in self._waiting if job.canceled]
            for job in unwanted:
                self._waiting.remove(job)
        for job in unwanted:
            self._end(job, None)

    def _round(self) -> None:
        """Choose and read one token of each text."""
        for running in list(self._running):
            with self._blaming([running]):
                self._choose(running)
        for together in self._groups():
            with self._blaming(together):
                self._gather(together)
                self._decode(together)

    @contextmanager
    def _blaming(self, texts: Sequence[_Running]) -> Iterator[None]:
        """End texts by an error that is raised within; others go on."""
        try:
            yield
        except Exception as error:
            failure = _failure(error)
            for running in [running for running in texts if running in self._running]:
                self._running.remove(running)
                self._end(running.job, failure)

    def _choose(self, running: _Running) -> None:
        job, logits = running.job, running.state.logits[running.row]
        running.token = running.text.choose(logits)
        running.logprobs = None if job.logprobs is None else logprobs_of(logits, running.token, job.logprobs)
        if last := running.text.end(running.token):
            self._give(running, last)

    def _groups(self) -> list[list[_Running]]:
        """Texts that are read together, and each of those that are not."""
        if not self._gathers or not self._running:
            return [[running] for running in self._running]
        longest = self._crossover.longest(len(self._running))
        short = [running for running in self._running if running.text.length <= longest]
        return ([short] if short else []) + [[running] for running in self._running if running.text.length > longest]

    def _gather(self, together: Sequence[_Running]) -> None:
        """Have texts in one state, and none beside them in it that has ended or is read by itself."""
        state = together[0].state
        if len(state.mask) != len(together) or any(running.state is not state for running in together):
            state = gather(self._session, [(running.state, running.row) for running in together])
            for row, running in enumerate(together):
                running.state, running.row = state, row

    def _decode(self, together: Sequence[_Running]) -> None:
        state = together[0].state
        stats = self._session.decode(state, [running.token for running in together])
        is_full = self._session.is_full(state)
        for running, each in zip(together, stats, strict=True):
            self._give(running, running.text.add(running.token, each, is_full))

    def _give(self, running: _Running, piece: Piece) -> None:
        """Give a piece out, and its text's slot free where it is the last."""
        self._metrics.generated(running.job, piece)
        event = Generated(piece, running.logprobs)
        if piece.finish is None:
            running.job.emit(event)
        else:
            self._running.remove(running)
            self._end(running.job, event)


def _failure(error: Exception) -> Failed:
    """Event of an error; one that is not meant for the user is logged, and not told."""
    if isinstance(error, GuideError):
        return Failed(str(error), "request")
    if isinstance(error, CladaError):
        return Failed(str(error))
    _LOG.error("a text failed", exc_info=error)
    return Failed("the server failed to read the text; its log says why")
