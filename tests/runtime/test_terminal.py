"""Text on a terminal: its status, and what it must not do to the terminal. On a pseudo-terminal, as a user has one."""

import json
import os
import pty
import re
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from clada.command_line import one_line
from clada.contract.artifact import CHAT_TEMPLATE_NAME
from clada.runtime.cli import main
from clada.runtime.generation import Piece
from clada.runtime.status_line import Room, status
from clada.runtime.telemetry import TokenStats
from clada.runtime.terminal import show
from tests.support.manifests import vouch_for

TITLE = re.compile(r"\x1b\]0;([^\x07]*)\x07")
SUMMARY = re.compile(r"([\d.]+) tokens/s, load ([\d.]+), ([\d.]+)% of the bytes read, ([\d,]+) of 128 tokens")


def on_terminal(
    monkeypatch, work: Callable[[], object], typed: bytes = b"", term: str = "xterm-256color", streams: str = "out err"
) -> str:
    """All that is written to a terminal, which stands for some of our streams; the others are thrown away."""
    ours, theirs = pty.openpty()
    quiet = termios.tcgetattr(theirs)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, quiet)
    monkeypatch.setenv("TERM", term)
    written = bytearray()

    def read() -> None:
        with suppress(OSError):  # when nobody holds the other end any longer
            while part := os.read(ours, 65536):
                written.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    os.write(ours, typed)
    with ExitStack() as opened, monkeypatch.context() as patch:
        terminal = opened.enter_context(open(theirs, "r+b", buffering=0))
        patch.setattr(sys, "stdin", opened.enter_context(open(os.dup(theirs), encoding="utf-8")))
        for name in ("out", "err"):
            where = os.dup(terminal.fileno()) if name in streams.split() else os.open(os.devnull, os.O_WRONLY)
            patch.setattr(sys, f"std{name}", opened.enter_context(open(where, "w", encoding="utf-8", buffering=1)))
        work()
    reader.join()
    os.close(ours)
    return written.decode("utf-8").replace("\r\n", "\n")


def shown(text: str, count: int = 3, pause: float = 0.0, interrupted: bool = False) -> Callable[[], object]:
    """A function that shows a text of so many pieces, each after a pause."""

    def pieces() -> Iterator[Piece]:
        for number in range(count):
            time.sleep(pause)
            yield Piece(number, text, TokenStats(1.0, 1.0, number / 100, 0.5, 0.25, (1,), (2,)), None)
        if interrupted:
            raise KeyboardInterrupt
        yield Piece(0, "", None, "end")

    return lambda: show(pieces(), False, room=Room(10, 128), interruptible=True)


def without_sequences(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*[a-z]", "", TITLE.sub("", text))


def test_the_title_tells_while_a_text_is_written_and_is_wiped(monkeypatch):
    started = time.monotonic()
    written = on_terminal(monkeypatch, shown("word ", 25, 0.04))
    seconds = time.monotonic() - started
    titles = TITLE.findall(written)
    assert 3 <= len(titles) - 1 <= seconds / 0.1 + 1
    assert titles[-1] == ""
    assert all(SUMMARY.fullmatch(title) for title in titles[:-1])
    assert written.index("\x1b[22;0t") < written.index("\x1b]0;")
    assert written.index("\x1b[23;0t") > written.rindex("\x1b]0;")
    text, line, rest = without_sequences(written).split("\n")
    assert text == "word " * 25
    assert rest == ""
    rate, load, read, used = SUMMARY.fullmatch(line).groups()
    # Of what came after the first token, in 24 pauses; another process may take the processor.
    assert 1 < float(rate) <= 25.1
    assert (load, read, used) == ("0.12", "25", "35")


@pytest.mark.parametrize("text", ["x" * 79, "é→\n", "a\tb ", "   "])
def test_the_text_itself_is_not_disturbed(monkeypatch, text):
    """Wherever it wraps: but for whole sequences and the line at its end, what is written is the text."""
    written = without_sequences(on_terminal(monkeypatch, shown(text, 60, 0.004)))
    before, _, line = written.removesuffix("\n").rpartition("\n")
    assert before == text * 60
    assert SUMMARY.fullmatch(line)


@pytest.mark.parametrize("term", ["dumb", "", "linux"])
def test_no_sequences_where_a_terminal_has_none(monkeypatch, term):
    written = on_terminal(monkeypatch, shown("word ", 3, 0.1), term=term)
    assert "\x1b" not in written
    assert SUMMARY.search(written)


def test_streams_that_are_no_terminal_hold_no_status(monkeypatch):
    assert on_terminal(monkeypatch, shown("word ", 3, 0.1), streams="out") == "word " * 3 + "\n"
    # Text to a file, status to the user.
    written = on_terminal(monkeypatch, shown("word ", 3, 0.1), streams="err")
    assert "word" not in written
    assert SUMMARY.search(written)


def test_an_interrupted_text_leaves_no_title(monkeypatch):
    written = on_terminal(monkeypatch, shown("word ", 3, 0.1, interrupted=True))
    assert TITLE.findall(written)[-1] == ""
    assert written.count("\x1b[22;0t") == written.count("\x1b[23;0t") == 1
    assert SUMMARY.search(written)


HARMFUL = {
    "clears the screen": "\x1b[2J",
    "writes the clipboard": "\x1b]52;c;YQ==\x07",
    "goes back": "a\rb\x08c",
    "in eight bits": "\x9b2J\x9d0;t\x9c",
    "others": "".join(map(chr, range(1, 9))) + "\x7f",
}


@pytest.mark.fault(
    "text", "a text with commands for the terminal", now="shown as pictures there, and as it is elsewhere"
)
@pytest.mark.parametrize("kind", HARMFUL)
def test_a_text_commands_no_terminal(monkeypatch, capsys, kind):
    text = HARMFUL[kind]
    written = on_terminal(monkeypatch, shown(text, 1), streams="out").removesuffix("\n")
    assert len(written) == len(text)
    assert written.isprintable()
    capsys.readouterr()
    shown(text, 1)()
    assert capsys.readouterr() == (f"{text}\n", "")


@pytest.mark.parametrize("text", [*HARMFUL.values(), "a\nb", "\ud800", "\u202e", "x" * 5000])
def test_errors_are_one_printable_line(text):
    line = one_line(f"cannot read {text}")
    assert line.isprintable()
    assert len(line) <= 1010


def test_status_has_the_means_of_its_tokens():
    stats = [TokenStats(0.0, 0.0, load, 0.0, read, (), ()) for load, read in ((0.25, 0.5), (0.75, 1.0))]
    assert status(stats, 12.34, 2, Room(1000, 4096)) == (
        f"12.3 tokens/s, load {np.mean([0.25, 0.75]):.2f}, 75% of the bytes read, 1,002 of 4,096 tokens"
    )


@pytest.fixture(scope="module")
def chatting(tiny_artifact, tmp_path_factory) -> str:
    """A model with a chat template of its own, which takes arguments and tools."""
    folder = tmp_path_factory.mktemp("chatting")
    for file in tiny_artifact.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = (
        "{{ tools | tojson if tools }}{% if quick %}!{% endif %}{% for m in messages %}{{ m.content }} {% endfor %}"
    )
    (folder / CHAT_TEMPLATE_NAME).write_text(template)
    vouch_for(folder / CHAT_TEMPLATE_NAME)
    return str(folder / tiny_artifact.name)


def test_a_conversation_at_a_terminal(chatting, tmp_path, monkeypatch):
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": {"name": "f"}}]))
    options = ["--threads", "1", "--greedy", "--max-new-tokens", "4"]
    given = [*options, "--template-arg", "quick=true", "--tools", str(tmp_path / "tools.json")]
    written = on_terminal(monkeypatch, lambda: main(["chat", chatting, *given]), b"first\nsecond\n\n")
    used = [int(found[3]) for found in SUMMARY.findall(without_sequences(written))]
    assert len(used) == 2
    assert used[1] > used[0] > 4
    quiet = on_terminal(monkeypatch, lambda: main(["chat", chatting, *given, "--quiet"]), b"first\n\n")
    assert not SUMMARY.search(quiet)
    assert "\x1b" not in quiet
    assert SUMMARY.search(on_terminal(monkeypatch, lambda: main(["run", chatting, "--prompt", "x", *options])))
