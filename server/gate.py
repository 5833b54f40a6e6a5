"""Gate before the application: whom it answers, and how much of a request is read."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from clada.server.errors import RequestError, error_response
from clada.server.limits import Limits
from clada.server.metrics import Metrics

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

# Names of this machine for itself.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Answered without a key: the page, which asks for one, and whether the server is well.
_OPEN = ("/", "/page.js", "/page.css", "/health")


@dataclass(frozen=True)
class Access:
    """Whom the server answers.

    Args:
        key: API key that requests must give; None where anyone may ask.
        hosts: Names by which it may be called, against a site whose name is made to lead here; None for any.
    """

    key: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK


class Gate:
    """Gate before an ASGI application; what is refused has the form of OpenAI's errors.

    Args:
        app: The application.
        access: Whom it answers.
        limits: Limits of a request's body.
        metrics: Counts answers.
    """

    def __init__(self, app: _App, access: Access, limits: Limits, metrics: Metrics) -> None:
        self._app, self._access, self._limits, self._metrics = app, access, limits, metrics

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: _Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._metrics.answered(getattr(route, "path", "other"), message["status"])
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            body = await asyncio.wait_for(self._body(headers, receive), self._limits.body_seconds)
        except RequestError as error:
            challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            await error_response(str(error), error.status, error.param, error.code, challenge)(scope, receive, counted)
        except asyncio.TimeoutError:
            reason = f"the request did not come within {self._limits.body_seconds:g} s"
            await error_response(reason, 408)(scope, receive, counted)
        else:
            if body is not None:
                await self._app(scope, _again(body, receive), counted)

    def _check(self, path: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self._access.hosts is not None and _name(host) not in self._access.hosts:
            raise RequestError(f"this server is not called {host[:100]!r}: use {self._access.hosts[0]}", 403)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestError(f"pages of {origin[:100]} may not ask this server", 403)
        if self._access.key is not None and path not in _OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._access.key.encode()):
                raise RequestError("the API key is missing or wrong: give it as `Authorization: Bearer KEY`", 401)

    async def _body(self, headers: dict[str, str], receive: _Receive) -> bytes | None:
        """Body of a request; None where the client went away."""
        reason = f"the request has more than {self._limits.body:,} bytes"
        if (
            headers.get("content-length", "0").isdecimal()
            and int(headers.get("content-length", "0")) > self._limits.body
        ):
            raise RequestError(reason, 413)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._limits.body:
                raise RequestError(reason, 413)
            if not message.get("more_body", False):
                return bytes(body)


def _name(host: str) -> str:
    """Name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _again(body: bytes, receive: _Receive) -> _Receive:
    """Receive a body that was read, and then what comes after it."""
    first: list[_Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> _Message:
        return first.pop() if first else await receive()

    return received
