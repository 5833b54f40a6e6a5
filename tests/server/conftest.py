"""Servers that tests ask over HTTP, each in a thread of this process."""

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from clada.runtime import Session
from clada.server.serving import Serving, serve
from tests.support.manifests import vouch_for

SECONDS = 60
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@dataclass(frozen=True)
class Running:
    """A server.

    Args:
        address: Of it.
        session: Another one of the same model, which answers as the server ought to.
    """

    address: str
    session: Session

    @property
    def client(self) -> openai.OpenAI:
        """OpenAI's own client; it does not ask again after an error."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=SECONDS)

    @property
    def http(self) -> httpx.Client:
        """A client of HTTP alone."""
        return httpx.Client(base_url=self.address, timeout=SECONDS)

    def metric(self, name: str) -> float:
        """Value of a metric."""
        lines = self.http.get("/metrics", headers={"Authorization": "Bearer secret"}).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture(scope="session")
def chat_artifact(inputs_artifact, tmp_path_factory) -> Path:
    """The ONNX file of a tiny Llama that skips inputs, and has a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    shutil.copytree(inputs_artifact.parent, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    vouch_for(folder / "chat_template.jinja")
    return folder / inputs_artifact.name


@contextmanager
def running(path: Path, **options: Any) -> Iterator[Running]:
    """Serve a model for as long as the context lasts; it ends as it does on a signal, and leaves no thread."""
    started: queue.Queue[tuple[str, Callable[[], None]]] = queue.Queue()
    given = Serving("tiny", port=0, **options)
    session = Session(path, threads=1)
    thread = threading.Thread(target=serve, args=(session, given, lambda *told: started.put(told)))
    before = set(threading.enumerate())
    thread.start()
    address, stop = started.get(timeout=SECONDS)
    try:
        yield Running(address, Session(path, threads=1))
    finally:
        stop()
        thread.join(SECONDS)
        assert not thread.is_alive()
        left = [other.name for other in set(threading.enumerate()) - before]
        assert not [name for name in left if name.startswith("clada ")]


@pytest.fixture(scope="module")
def server(chat_artifact) -> Iterator[Running]:
    """A server with the usual options."""
    with running(chat_artifact) as found:
        yield found


@pytest.fixture
def serving(chat_artifact) -> Iterator[Callable[..., Running]]:
    """A function from options to a server with those."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(chat_artifact, **options))


@pytest.fixture
def slow(monkeypatch):
    """Steps of all servers take long enough for others to ask meanwhile."""
    step = Session.decode
    monkeypatch.setattr(Session, "decode", lambda *given: (time.sleep(0.02), step(*given))[1])
