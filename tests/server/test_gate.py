"""Whom the server answers, and how much it reads: bytes on a socket, as a stranger sends them."""

import json
import shutil
import socket
import time
from urllib.parse import urlsplit

import openai
import pytest

from clada.server.gate import Access
from clada.server.limits import Limits
from tests.server.conftest import running
from tests.support.manifests import vouch_for

BODY = {"model": "tiny", "prompt": "x", "max_tokens": 1}


def ask(server, headers: dict[str, str], path: str = "/v1/models"):
    return server.http.get(path, headers=headers)


@pytest.mark.fault("server", "a site whose name is made to lead to this machine (DNS rebinding)", now="403")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:8080", 200),
        ("127.0.0.1", 200),
    ],
)
def test_the_server_answers_by_its_own_names(server, host, status):
    found = ask(server, {"Host": host})
    assert found.status_code == status
    assert status == 200 or found.json()["error"]["type"] == "permission_error"


@pytest.mark.fault("server", "a page of another site that asks the server", now="403, and no CORS header")
def test_pages_of_other_sites_are_not_answered(server):
    host = urlsplit(server.address).netloc
    assert ask(server, {"Origin": f"http://{host}"}).status_code == 200
    for origin in ("http://evil.example", "null", f"http://{host}.evil.example"):
        found = server.http.post("/v1/completions", json=BODY, headers={"Origin": origin})
        assert found.status_code == 403
        assert not [name for name in found.headers if name.startswith("access-control")]
    plain = server.http.post("/v1/completions", content=json.dumps(BODY), headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400


def test_only_who_has_the_key_is_answered(serving, capfd):
    server = serving(access=Access("secret"))
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic secret"},
        {"Authorization": "Bearer é"},
    ):
        found = ask(server, {name: value.encode() for name, value in headers.items()})
        assert found.status_code == 401
        assert found.headers["WWW-Authenticate"] == "Bearer"
        assert found.json()["error"]["code"] == "invalid_api_key"
        assert ask(server, {}, "/metrics").status_code == 401
    assert ask(server, {"Authorization": "Bearer secret"}).status_code == 200
    assert ask(server, {}, "/health").json() == {"status": "ok"}
    with pytest.raises(openai.AuthenticationError):
        server.client.models.list()
    assert openai.OpenAI(base_url=f"{server.address}/v1", api_key="secret").models.list().data
    assert "secret" not in "".join(capfd.readouterr())


def sent(server, content: bytes) -> bytes:
    """Answer to bytes, until the server closes the connection or has said all of it."""
    address = urlsplit(server.address)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(content)
        found = b""
        while part := connection.recv(65536):
            found += part
            if b"\r\n\r\n" in found and found.rstrip().endswith(b"}"):
                break
        return found


def request(server, body: bytes, length: int | None = None) -> bytes:
    host = urlsplit(server.address).netloc
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.fault("server", "a request of a gigabyte", now="413, before it is read")
def test_a_large_request_is_not_read(server):
    assert b" 413 " in sent(server, request(server, b"{", 1 << 30)).split(b"\r\n")[0]
    host = urlsplit(server.address).netloc
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert b" 413 " in sent(server, head + chunk * 17).split(b"\r\n")[0]


@pytest.mark.fault("server", "a request that does not come to its end", now="408 after a time")
def test_a_slow_request_is_let_go(serving):
    server = serving(limits=Limits(body_seconds=0.3))
    begun = time.monotonic()
    assert b" 408 " in sent(server, request(server, b'{"model"', 100)).split(b"\r\n")[0]
    assert time.monotonic() - begun < 10


@pytest.mark.fault("server", "requests that are no JSON, or no text", now="400 in OpenAI's form")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "x", "stream": "yes"}',
        b'{"model": "tiny", "prompt": {"x": 1}}',
        b'{"model": "tiny", "prompt": "x", "max_tokens": 1.5}',
        b'{"model": "tiny", "prompt": [1, "x"]}',
        b'{"model": "tiny", "prompt": "x", "\\ud800": 1}',
        b'{"model": "tiny", "prompt": "x", "' + b"n" * 100_000 + b'": 1}',
        b'{"model": "tiny", "prompt": "x", "response_format": {"type": "\\ud800"}}',
        b'{"model": "tiny", "prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "x", '
        b'"schema": {"\\ud800": 1}}}}',
        b'{"model": "tiny", "prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "x", '
        b'"schema": {"minimum": NaN}}}}',
        b'{"model": "tiny", "prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "x", '
        b'"schema": ' + b'{"items": ' * 900 + b"{}" + b"}" * 900 + b"}}}",
    ],
    ids=lambda body: repr(body[:50]),
)
def test_what_is_no_request_is_refused(server, body):
    found = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert 0 < len(found.json()["error"]["message"]) < 2000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/v1/models", 405), ("GET", "/v1/completions", 405), ("GET", "/docs", 404)],
)
def test_paths_that_are_not_there(server, method, path, status):
    found = server.http.request(method, path)
    assert found.status_code == status
    assert found.json()["error"]["message"].startswith(f"{method} {path}")


def test_a_template_that_never_ends_stops_no_text(chat_artifact, tmp_path):
    """It is refused after its budget of steps, and others are answered meanwhile."""
    folder = tmp_path / "hostile"
    shutil.copytree(chat_artifact.parent, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    vouch_for(folder / "chat_template.jinja")
    with running(folder / chat_artifact.name) as server:
        with pytest.raises(openai.BadRequestError, match="it takes too many steps"):
            server.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
        assert server.client.completions.create(model="tiny", prompt="x", max_tokens=1).choices
