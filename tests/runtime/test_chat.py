"""Conversations and prompts at a terminal: kept within the context, interrupted, sampled as the model says."""

import argparse
import io
import json
import shutil
import sys

import pytest

from clada.command_line import progress
from clada.errors import CladaError
from clada.runtime import GenerationConfig, Piece, SamplingConfig, Session
from clada.runtime.cli import main
from clada.runtime.conversation import fit
from clada.runtime.find_model import find_model

SYSTEM, QUESTION = {"role": "system", "content": "s s"}, {"role": "user", "content": "q q q"}
TURN = [{"role": "user", "content": "u u u u"}, {"role": "assistant", "content": "a a a a"}]
CHAT = ["--threads", "1", "--greedy"]


def words(messages) -> list[int]:
    return [0 for message in messages for _ in message["content"].split()]


@pytest.mark.parametrize(
    ("turns", "context", "room", "left_out"),
    [(0, 100, 10, 0), (3, 37, 10, 0), (3, 36, 10, 1), (3, 29, 10, 1), (3, 28, 10, 2), (3, 20, 10, 3), (3, 4, 10, 3)],
)
@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_the_oldest_turns_are_left_out(system, turns, context, room, left_out):
    context += len(words(system))
    fitted = fit([*system, *TURN * turns, QUESTION], words, context, room)
    assert fitted.left_out == left_out
    assert fitted.messages == [*system, *TURN * (turns - left_out), QUESTION]
    assert fitted.tokens == words(fitted.messages)


def test_a_question_that_does_not_fit_alone_is_refused():
    with pytest.raises(CladaError, match="the question makes 3 tokens, and the context is 3; ask less"):
        fit([*TURN, QUESTION], words, 3, 10)


def write_plainly(_folder, messages) -> str:
    return "".join(f"[{message['role'][0]}]{message['content']}" for message in messages)


@pytest.fixture
def asked(monkeypatch):
    """The conversations that were written for the model, each as text."""
    seen = []

    def write(folder, messages, **_) -> str:
        seen.append(write_plainly(folder, messages))
        return seen[-1]

    monkeypatch.setattr("clada.runtime.conversation.render_chat", write)
    return seen


@pytest.fixture
def chat(asked, tiny_artifact, monkeypatch, capsys):
    """A function from lines of bytes to exit code, standard output and standard error."""

    def converse(*lines: bytes, options: list[str] = CHAT) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join([*lines, b""])), encoding="utf-8"))
        capsys.readouterr()
        return (main(["chat", str(tiny_artifact), *options]), *capsys.readouterr())

    return converse


@pytest.mark.fault(
    "text", "a conversation that outgrows the context", now="the oldest turns are left out, which is said"
)
def test_a_conversation_that_outgrows_the_context_goes_on(chat, asked):
    lines = [b"question %d of many words" % number for number in range(5)]
    code, _, err = chat(*lines, options=[*CHAT, "--max-new-tokens", "20"])
    assert code == 0
    assert "outgrows the context of 128 tokens: the first question and its answer are left out" in err
    assert asked[-1].startswith("[u]question")
    assert "question 0" not in asked[-1]
    assert asked[-1].endswith("[u]question 4 of many words")


@pytest.mark.fault("text", "a question longer than the context", now="refused in one line, the conversation goes on")
def test_a_question_that_is_too_long_is_refused(chat, asked):
    code, _, err = chat(b"first", b"word " * 300, b"last", options=[*CHAT, "--max-new-tokens", "4", "-q"])
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith("error: not asked: the question makes ")
    assert asked[-1].startswith("[u]first[a]")
    assert asked[-1].endswith("[u]last")


@pytest.mark.fault("text", "a question that is not UTF-8", now="refused in one line, the conversation goes on")
def test_a_question_that_is_no_text_is_refused(chat, asked):
    code, _, err = chat(b"\xef\xbb\xbffirst", b"bad \xff", b"last", options=[*CHAT, "--max-new-tokens", "4", "-q"])
    assert code == 0
    assert err == "error: not asked: the question is no text in this terminal's encoding, utf-8\n"
    assert asked[1] == "[u]first"
    assert asked[-1].endswith("[u]last")


def test_what_was_read_of_a_conversation_is_not_read_again(asked, inputs_artifact, monkeypatch, capsys):
    """Of the second prompt, the first answer, which was decoded, and what follows it."""
    counts = []
    step = Session._step

    def counted(session, state, ids, *arguments):
        counts.append(ids.shape[1])
        return step(session, state, ids, *arguments)

    monkeypatch.setattr(Session, "_step", counted)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a first question\nanother\n"), encoding="utf-8"))
    assert main(["chat", str(inputs_artifact), *CHAT, "--max-new-tokens", "4"]) == 0
    capsys.readouterr()
    first, second = (count for count in counts if count > 1)
    session = Session(inputs_artifact, threads=1)
    whole = [len(session.encode(text, add_special_tokens=False)) for text in asked[1:]]
    assert first == whole[0]
    assert second < whole[1] - 0.7 * first


def test_a_conversation_can_begin_anew(chat, asked):
    chat(b"first", b"/clear", b"last", options=[*CHAT, "--max-new-tokens", "4", "--system", "be brief"])
    assert asked[-1] == "[s]be brief[u]last"


def test_a_file_can_be_asked(chat, asked, tmp_path):
    (tmp_path / "a question.txt").write_text("of two\nlines")
    chat(b"/load %s" % bytes(tmp_path / "a question.txt"))
    assert asked[-1] == "[u]of two\nlines"


def test_the_share_of_bytes_can_be_turned(asked, inputs_artifact, monkeypatch, capsys):
    """For what is read from then on, of a conversation that goes on too."""
    lines = io.BytesIO(b"first\n/bytes 1\nsecond\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding="utf-8"))
    assert main(["chat", str(inputs_artifact), *CHAT, "--max-new-tokens", "4", "--stats"]) == 0
    means = [float(line.split()[-1].rstrip("%")) for line in capsys.readouterr().err.splitlines() if "mean" in line]
    assert means[0] < 80
    assert means[1] == 100


@pytest.mark.fault("text", "a command that a conversation has not", now="refused in one line, the conversation goes on")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"/quit", "there is no /quit, but /clear begins another, "),
        (b"/load", "/load takes the name of a file"),
        (b"/load -", "/load takes the name of a file"),
        (b"/load /absent", "cannot read the prompt file /absent: No such file"),
        (b"/bytes half", "/bytes takes a share of the bytes as 0.7, and not 'half'"),
        (b"/bytes 0.7", "bytes is 0.7, and the artifact skips neurons"),
    ],
)
def test_what_is_no_command_is_refused(chat, asked, line, message):
    code, _, err = chat(b"first", line, b" /last", options=[*CHAT, "--max-new-tokens", "4", "-q"])
    assert code == 0
    (told,) = err.splitlines()
    assert told.startswith(f"error: not asked: {message}")
    assert asked[-1].startswith("[u]first[a]")
    assert asked[-1].endswith("[u] /last")


def test_tools_and_template_arguments_are_given_to_the_template(chat, monkeypatch, tmp_path):
    given = []

    def write(_folder, messages, **options) -> str:
        given.append(options)
        return write_plainly(None, messages)

    monkeypatch.setattr("clada.runtime.conversation.render_chat", write)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    short = [*CHAT, "--max-new-tokens", "2"]
    options = ["--template-arg", "enable_thinking=false", "--template-arg", "date=1 Dec", "--tools"]
    assert chat(b"why", options=[*short, *options, str(tmp_path / "tools.json")])[0] == 0
    assert given[-1] == {"tools": tools, "template_args": {"enable_thinking": False, "date": "1 Dec"}}
    assert chat(b"why", options=short)[0] == 0
    assert given[-1] == {"tools": None, "template_args": {}}


@pytest.mark.fault("command line", "tools and template arguments that make no sense", now="refused in one line")
@pytest.mark.parametrize(
    ("options", "content", "line"),
    [
        (["--template-arg", "thinking"], "", "a template argument is 'thinking'; it must be NAME=VALUE"),
        (["--template-arg", "a=1", "--template-arg", "a=2"], "", "--template-arg gives a twice"),
        (["--tools", "/absent"], "", "cannot read /absent: No such file"),
        (["--tools", "tools.json"], "[", "tools.json is not valid JSON: Expecting value"),
        (["--tools", "tools.json"], "\xff", "tools.json is not valid JSON: "),
        (["--tools", "tools.json"], "[" * 100_000, "tools.json is not valid JSON: "),
        (["--tools", "tools.json"], '{"f": 1}', "tools.json: tools is {'f': 1}; it must be a list"),
        (["--tools", "tools.json"], '["f"]', "tools.json: tools[0] is 'f'; it must be "),
    ],
)
def test_tools_and_arguments_that_make_no_sense(tmp_path, monkeypatch, capsys, options, content, line):
    """Before a model is loaded: here there is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools.json").write_bytes(content.encode("latin-1"))
    capsys.readouterr()
    assert main(["chat", "absent.onnx", *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (told,) = err.splitlines()
    assert told.startswith(f"error: {line}")


@pytest.mark.fault("text", "answers longer than 128 tokens", now="as long as the context, and a note where one is cut")
def test_an_answer_is_cut_by_the_context_alone(chat, monkeypatch):
    monkeypatch.setattr("clada.runtime.session.end_tokens", lambda *_: frozenset())
    code, _, err = chat(b"why")
    assert code == 0
    assert "note: the answer was cut: the context of 128 tokens is full" in err
    assert (
        "note: the answer was cut after 4 tokens, as --max-new-tokens says"
        in chat(b"why", options=[*CHAT, "--max-new-tokens", "4"])[2]
    )


@pytest.mark.fault("text", "Ctrl-C during an answer", now="the answer ends, the conversation goes on")
def test_an_interrupt_ends_the_answer(chat, asked, monkeypatch):
    def stream(_session, _prompt, _config, _prefix):
        yield Piece(1, "so far", None, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "stream", stream)
    code, out, err = chat(b"why", b"and then")
    assert code == 0
    assert out == "> so far\n> so far\n> "
    assert err.count("note: the answer was stopped\n") == 2
    assert asked[-1] == "[u]why[a]so far[u]and then"


def test_an_interrupt_at_the_prompt_ends_the_program(chat, monkeypatch):
    def interrupt(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert chat()[0] == 130


@pytest.fixture
def configs(monkeypatch):
    """Configurations passed to `Session.stream`, of a model that samples."""
    seen = []

    def stream(_session, prompt, config, _prefix=None):
        seen.append((prompt, config))
        yield Piece(1, "x", None, "end")

    monkeypatch.setattr(Session, "stream", stream)
    own = SamplingConfig(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    monkeypatch.setattr(Session, "default_sampling", own)
    return seen


OWN = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
NOTE = (
    "note: sampling as the model's generation_config.json says, temperature 0.7, top_k 20, top_p 0.8, "
    "repetition_penalty 1.05; --greedy turns it off\n"
)


@pytest.mark.fault("command line", "the model's own sampling settings", now="the defaults of run and chat")
@pytest.mark.parametrize(
    ("options", "sampling", "said"),
    [
        ([], OWN, NOTE),
        (["-q"], OWN, ""),
        (["--greedy"], {}, ""),
        (["--greedy", "--repetition-penalty", "1.2"], {"repetition_penalty": 1.2}, ""),
        (["--temperature", "0.5"], OWN | {"temperature": 0.5}, ""),
        (["--top-k", "5", "--seed", "3"], OWN | {"top_k": 5, "seed": 3}, ""),
        (["--temperature", "0", "--min-p", "0.1"], OWN | {"temperature": 0.0, "min_p": 0.1}, "the temperature is 0"),
    ],
)
def test_the_models_own_settings_are_the_defaults(tiny_artifact, configs, capsys, options, sampling, said):
    capsys.readouterr()
    command = ["run", str(tiny_artifact), "--prompt", "x", "--stop-token", "7", "--stop-token", "9", "--stop", "y"]
    assert main([*command, *options]) == 0
    prompt = Session(tiny_artifact).encode("x")
    assert configs == [(prompt, GenerationConfig(128, ["y"], SamplingConfig(**sampling), [7, 9]))]
    err = capsys.readouterr().err
    assert said in err
    assert bool(said) == bool(err)


def test_chat_has_them_too(chat, configs):
    assert NOTE in chat(b"why", options=[])[2]
    assert configs[0][1] == GenerationConfig(None, [], SamplingConfig(**OWN))


@pytest.mark.fault("text", "prompts out of files and standard input", now="read as they are, without a byte-order mark")
def test_prompts_come_from_files(tiny_artifact, configs, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("﻿def f(→)\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\n\n".encode()), encoding="ascii"))
    for name in (str(tmp_path / "a.txt"), "-"):
        assert main(["run", str(tiny_artifact.parent), "--prompt-file", name]) == 0
    assert [prompt for prompt, _ in configs] == [
        Session(tiny_artifact).encode(text) for text in ("def f(→)\n", "é\n\n")
    ]


def test_run_says_where_its_own_limit_cut_a_text(tiny_artifact, capsys, monkeypatch):
    pieces = [Piece(1, "x", None, None)] * 2 + [Piece(1, "x", None, "length")]
    monkeypatch.setattr(Session, "stream", lambda *_: iter(pieces))
    monkeypatch.setattr("clada.runtime.generation_command._RUN_TOKENS", 3)
    cut = "note: cut after 3 tokens; --max-new-tokens allows more\n"
    for options, said in (([], cut), (["-q"], ""), (["--max-new-tokens", "3"], "")):
        capsys.readouterr()
        assert main(["run", str(tiny_artifact), "--prompt", "x", *options]) == 0
        assert capsys.readouterr().err == said


def test_a_folder_stands_for_the_model_in_it(tiny_artifact, tmp_path):
    assert find_model(tiny_artifact.parent) == tiny_artifact
    assert find_model(tiny_artifact) == tiny_artifact
    shutil.copy(tiny_artifact, tmp_path / "a.engine")
    assert find_model(tmp_path) == tmp_path / "a.engine"
    shutil.copy(tiny_artifact, tmp_path / "b.onnx")
    assert find_model(tmp_path) == tmp_path / "b.onnx"
    shutil.copy(tiny_artifact, tmp_path / "c.onnx")
    with pytest.raises(CladaError, match=r"holds b\.onnx, c\.onnx: give one of them"):
        find_model(tmp_path)


def test_inspect_as_json(tiny_artifact, capsys):
    capsys.readouterr()
    assert main(["inspect", str(tiny_artifact.parent), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(tiny_artifact)
    written = json.loads(tiny_artifact.with_name("clada.json").read_text())
    for section in ("model", "ops", "policy"):
        assert facts["manifest"][section] == written[section]
    assert facts["bytes"]["model.onnx"] == tiny_artifact.stat().st_size
    assert facts["engine"] is None


@pytest.mark.parametrize(
    ("quiet", "verbose", "shown"), [(False, False, "a\n"), (True, False, ""), (False, True, " s  a\n")]
)
def test_progress_is_as_loud_as_was_asked(capsys, quiet, verbose, shown):
    progress(argparse.Namespace(quiet=quiet, verbose=verbose))("a")
    out = capsys.readouterr().out
    assert out.endswith(shown)
    assert bool(shown) == bool(out)
