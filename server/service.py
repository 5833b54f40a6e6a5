"""Service of one model: takes a request from its arrival to its answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clada.contract.weight_bytes import weight_bytes
from clada.errors import CladaError
from clada.runtime.session import Session
from clada.server.asked import Asked
from clada.server.errors import RequestError, error_content
from clada.server.forms import ChatForm, CompletionForm, Form, Tally
from clada.server.guides import GrammarGuide, Guides
from clada.server.jobs import Event, Failed, Generated, PromptRead
from clada.server.limits import Limits
from clada.server.metrics import Metrics
from clada.server.preparation import number_of_texts, prepare
from clada.server.requests import ChatRequest, CompletionRequest, GenerationRequest
from clada.server.scheduler import Scheduler

_T = TypeVar("_T")
_STATUS = {"error": 500, "stopping": 503, "request": 400}


class GoneError(Exception):
    """The client went away; nobody is answered."""


@dataclass
class Service:
    """Service of one model.

    Args:
        session: The model.
        scheduler: Generates its texts.
        name: Name by which requests ask for it.
        limits: Limits of requests.
        metrics: Counts.
    """

    session: Session
    scheduler: Scheduler
    name: str
    limits: Limits
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.weight_bytes = weight_bytes(self.session.manifest, self.session.manifest.quantization)
        self._guides = Guides(self.session, self.limits.guide_seconds)
        # One at a time, so that a template or a grammar that takes long delays others of its kind and no step.
        self._preparing = ThreadPoolExecutor(1, "clada preparation")
        self._guiding = ThreadPoolExecutor(1, "clada grammars")

    def close(self) -> None:
        """End the threads and the process that prepare requests."""
        self._preparing.shutdown(cancel_futures=True)
        self._guiding.shutdown(cancel_futures=True)
        self._guides.close()

    async def answer(self, request: Request, asked: CompletionRequest | ChatRequest) -> Response:
        """Answer a request.

        Raises:
            CladaError: It is refused, or fails.
            GoneError: The client went away.
        """
        arrived = time.monotonic()
        if asked.model != self.name:
            raise RequestError(
                f"there is no model {asked.model[:100]!r} here, but {self.name!r}", 404, "model", "model_not_found"
            )
        gone = asyncio.create_task(_gone(request))
        try:
            work = await self._begin(asked, arrived, gone)
            try:
                first = await _unless(gone, anext(work.events))
                _check(first[1])
                if asked.stream:
                    usage = bool(asked.stream_options and asked.stream_options.include_usage)
                    return _Stream(_chunks(work, first, usage), work.texts)
                return await _whole(work, first, gone)
            except BaseException:
                work.texts.cancel()
                raise
        finally:
            gone.cancel()

    async def _begin(
        self, asked: CompletionRequest | ChatRequest, arrived: float, gone: "asyncio.Task[None]"
    ) -> "_Work":
        """Take places for a request's texts, prepare it and have the scheduler generate them."""
        count = number_of_texts(asked)
        if count > self.scheduler.places.count:
            raise RequestError(f"{count} texts are asked for, and this server holds {self.scheduler.places.count}")
        self.scheduler.places.take(count)
        try:
            prepared = await self._in(self._preparing, gone, lambda: prepare(self.session, self.limits, asked))
            guides = await self._guides_for(prepared.grammar, count, asked, gone)
        except BaseException:
            self.scheduler.places.give_back(count)
            raise
        form = (ChatForm if isinstance(asked, ChatRequest) else CompletionForm)(self.name, self.session.tokenizer)
        tally = Tally(sum(map(len, prepared.prompts)), prepared.choices, self.weight_bytes)
        texts = Asked(self.scheduler, prepared, guides, arrived)
        return _Work(texts, texts.events(), count, form, tally)

    async def _guides_for(
        self, grammar: str | None, count: int, asked: GenerationRequest, gone: "asyncio.Task[None]"
    ) -> list[GrammarGuide]:
        if grammar is None:
            return []
        try:
            return await self._in(self._guiding, gone, lambda: self._guides.make(grammar, count))
        except CladaError as error:
            param = "guided_regex" if asked.guided_regex is not None else "response_format"
            raise RequestError(f"{param}: {error}", param=param) from error

    async def _in(self, executor: ThreadPoolExecutor, gone: "asyncio.Task[None]", work: Callable[[], _T]) -> _T:
        return await _unless(gone, asyncio.get_running_loop().run_in_executor(executor, work))


@dataclass(frozen=True)
class _Work:
    """Request whose texts are generated.

    Args:
        texts: The texts.
        events: Their events.
        count: Number of texts.
        form: Form of the answer.
        tally: Counts the events.
    """

    texts: Asked
    events: AsyncIterator[tuple[int, Event]]
    count: int
    form: Form
    tally: Tally


class _Stream(StreamingResponse):
    """Stream of server-sent events, at whose end, however it comes, its texts are canceled."""

    def __init__(self, chunks: AsyncIterator[str], texts: Asked) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._texts.cancel()


async def _whole(work: _Work, first: tuple[int, Event], gone: "asyncio.Task[None]") -> Response:
    """Answer with all texts, once they have ended."""
    found: list[list[Generated]] = [[] for _ in range(work.count)]
    following: tuple[int, Event] | None = first
    while following is not None:
        index, event = following
        work.tally.add(index, event)
        _check(event)
        if isinstance(event, Generated):
            found[index].append(event)
        following = await _unless(gone, anext(work.events, None))
    return Response(work.form.whole(found, work.tally).model_dump_json(), media_type="application/json")


async def _chunks(work: _Work, first: tuple[int, Event], usage: bool) -> AsyncIterator[str]:
    """Server-sent events of the texts, as they are generated."""
    following: tuple[int, Event] | None = first
    while following is not None:
        index, event = following
        work.tally.add(index, event)
        if isinstance(event, Failed):
            yield _sent(json.dumps(error_content(event.reason, _STATUS[event.kind])))
            return
        chunk = work.form.first(index) if isinstance(event, PromptRead) else work.form.chunk(index, event)
        if chunk is not None:
            yield _sent(chunk.model_dump_json())
        following = await anext(work.events, None)
    if usage:
        yield _sent(work.form.last(work.tally).model_dump_json())
    yield _sent("[DONE]")


def _sent(data: str) -> str:
    return f"data: {data}\n\n"


def _check(event: Event) -> None:
    if isinstance(event, Failed):
        raise RequestError(event.reason, _STATUS[event.kind])


async def _gone(request: Request) -> None:
    """Return once the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: "asyncio.Task[None]", work: Awaitable[_T]) -> _T:
    """Wait for work, unless the client goes away first.

    Raises:
        GoneError: It did.
    """
    waiting = asyncio.ensure_future(work)
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise GoneError
        return waiting.result()
    finally:
        waiting.cancel()
