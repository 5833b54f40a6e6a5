"""Serving: opens the port, and closes all in order when it is told to stop."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from clada.errors import CladaError
from clada.runtime.session import Session
from clada.server.app import make_app
from clada.server.gate import Access
from clada.server.limits import Limits
from clada.server.metrics import Metrics
from clada.server.scheduler import Scheduler
from clada.server.service import Service

_IDLE_SECONDS = 30
# After texts had their time to end, connections have this.
_LAST_SECONDS = 5


@dataclass(frozen=True)
class Serving:
    """Options of a server.

    Args:
        name: Name of the model.
        host: Address to listen at.
        port: Port; 0 for any that is free.
        access: Whom to answer.
        slots: See Scheduler.
        queue: See Scheduler.
        prefix_tokens: See Scheduler.
        limits: Limits of requests.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8080
    access: Access = Access()  # noqa: RUF009 # frozen
    slots: int = 8
    queue: int = 64
    prefix_tokens: int = 8192
    limits: Limits = Limits()  # noqa: RUF009


class _Server(uvicorn.Server):
    """Server that has texts end before it waits for connections, and whose process ends well on a signal."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, seconds: float) -> None:
        super().__init__(config)
        self._scheduler, self._seconds = scheduler, seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Have texts end, then wait for their requests."""
        self._scheduler.stop(self._seconds)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, and do not raise it again."""
        with contextlib.suppress(KeyboardInterrupt), super().capture_signals():
            yield
            self._captured_signals.clear()


def listen(host: str, port: int) -> socket.socket:
    """Open a socket.

    Raises:
        CladaError: The address or port cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CladaError(
            f"cannot listen at {host}, port {port}: {reason}; choose another by --host or --port"
        ) from error


def serve(session: Session, options: Serving, started: Callable[[str, Callable[[], None]], Any]) -> None:
    """Serve a model until it is told to stop, by SIGINT or SIGTERM in the main thread.

    Args:
        session: The model; it is closed at the end.
        options: Options.
        started: Called with the server's address, and what stops it, once it listens.

    Raises:
        CladaError: The port cannot be had, or the model cannot be loaded.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(session.close)
        opened = stack.enter_context(listen(options.host, options.port))
        metrics, limits = Metrics(), options.limits
        scheduler = Scheduler(
            session, slots=options.slots, queue=options.queue, prefix_tokens=options.prefix_tokens, metrics=metrics
        )
        stack.callback(_end, scheduler)
        service = Service(session, scheduler, options.name, limits, metrics)
        stack.callback(service.close)
        config = uvicorn.Config(
            make_app(service, options.access),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=round(limits.stop_seconds) + _LAST_SECONDS,
        )
        server = _Server(config, scheduler, limits.stop_seconds)
        host, port = opened.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        started(address, lambda: setattr(server, "should_exit", True))
        server.run([opened])


def _end(scheduler: Scheduler) -> None:
    scheduler.stop(0)
    scheduler.join()
