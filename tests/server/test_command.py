"""The `clada serve` command: what it refuses, whom it answers, and that it ends well."""

import argparse
import os
import signal
import socket
import subprocess
import sys

import openai
import pytest

from clada.runtime.cli import main
from clada.server.command import _access, _key


def refused(capsys, *options: str) -> str:
    assert main(["serve", *options]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--slots", "0"], "--slots is 0; it must be 1 or more"),
        (["--queue", "-1"], "--queue is -1; it must be 0 or more"),
        (["--device", "cuda", "--cuda-graph"], "--cuda-graph is for one text at a time, and --slots is 8"),
        (["--port", "70000"], "--port is 70000; it must be 65535 or less"),
        (["--host", "0.0.0.0"], "--host is 0.0.0.0, where other machines may ask: give a key by CLADA_API_KEY"),
        (["--api-key-file", "/nowhere/key"], "/nowhere/key: No such file or directory"),
    ],
)
def test_options_that_make_no_sense_are_refused(capsys, monkeypatch, options, reason):
    monkeypatch.delenv("CLADA_API_KEY", raising=False)
    assert refused(capsys, "no-model", *options).startswith(f"error: {reason}")


def test_a_port_that_is_taken_is_refused(capsys, inputs_artifact):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen at 127.0.0.1" in refused(capsys, str(inputs_artifact), "--port", port)


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("CLADA_API_KEY", raising=False)
    assert _key(None) is None
    monkeypatch.setenv("CLADA_API_KEY", "of-the-environment")
    assert _key(None) == "of-the-environment"
    path = tmp_path / "key"
    path.write_text("of-a-file\n")
    assert _key(path) == "of-a-file"
    for content in (b"", b"\n", b"two\nlines", b"\xff", "ä".encode(), b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="key"):
            _key(path)


@pytest.mark.parametrize(
    ("host", "names"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_names_are_checked_where_only_this_machine_asks(monkeypatch, host, names):
    monkeypatch.setenv("CLADA_API_KEY", "x")
    found = _access(argparse.Namespace(host=host, api_key_file=None, no_api_key=False))
    assert (found.hosts is not None) == names
    assert found.key == "x"


@pytest.mark.fault("server", "SIGINT or SIGTERM while texts are generated", now="they end, and the exit code is 0")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(chat_artifact, number):
    command = [sys.executable, "-m", "clada", "serve", str(chat_artifact), "--port", "0", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "CLADA_API_KEY"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        line = server.stdout.readline()
        assert line.startswith("serving tiny-chat at http://127.0.0.1:")
        client = openai.OpenAI(base_url=f"{line.split()[-1]}/v1", api_key="x", max_retries=0)
        stream = client.completions.create(
            model="tiny-chat", prompt=[5], max_tokens=100, seed=1, temperature=1.0, stream=True
        )
        chunks = [next(iter(stream))]
        server.send_signal(number)
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason is not None
        assert server.wait(30) == 0
        assert server.stderr.read() == ""


def test_without_its_extra_one_line_says_what_to_install():
    program = (
        "import sys; sys.modules['fastapi'] = None; from clada.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    found = subprocess.run([sys.executable, "-c", program, "serve", "x"], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr == "error: `clada serve` needs fastapi: pip install 'clada[serve]'\n"
