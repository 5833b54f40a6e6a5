"""Request in work: its texts in the scheduler, and their events as they come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from clada.runtime.generation import Guide
from clada.server.jobs import Event, Failed, Generated, Job
from clada.server.preparation import Prepared
from clada.server.scheduler import Scheduler


class Asked:
    """Texts of a request, submitted to the scheduler; their places were taken.

    Args:
        scheduler: Generates them.
        prepared: The request.
        guides: Guide of each text; none where any token may come.
        arrived: When the request came, by the monotonic clock.
    """

    def __init__(self, scheduler: Scheduler, prepared: Prepared, guides: Sequence[Guide], arrived: float) -> None:
        self._scheduler = scheduler
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._jobs = [
            Job(
                prompt,
                prepared.choice_of(number),
                prepared.config,
                prepared.effort,
                self._emitter(place * prepared.choices + number),
                guides[place * prepared.choices + number] if guides else None,
                prepared.logprobs,
                arrived,
            )
            for place, prompt in enumerate(prepared.prompts)
            for number in range(prepared.choices)
        ]
        for job in self._jobs:
            scheduler.submit(job)

    def _emitter(self, index: int) -> Callable[[Event], None]:
        def emit(event: Event) -> None:
            # Once the server has stopped there is nobody to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return emit

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Events of all texts, each with its text's index, until all have ended or one has failed."""
        left = len(self._jobs)
        while left:
            index, event = await self._events.get()
            left -= isinstance(event, Generated) and event.piece.finish is not None
            yield index, event
            if isinstance(event, Failed):
                return

    def cancel(self) -> None:
        """Want no more of it; what has ended is not affected."""
        for job in self._jobs:
            self._scheduler.cancel(job)
