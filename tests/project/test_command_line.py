"""Ordinary mistakes on the command line, of every verb: a non-zero exit, and one line that names the error."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clada.command_line import exit_code, one_line
from clada.errors import CladaError
from clada.exporter.cli import main as export_main
from clada.runtime.cli import main as clada_main
from tests.conftest import ROOT

LONG = "a" * 5000
NOT_TEXT = os.fsdecode(b"a\xffb")
# Words of a command line; {artifact}, {folder}, {file} and {text} stand for what there is.
RUN = ["run", "{artifact}", "--prompt", "x"]
EXPORT = ["export", "{folder}/out/model.onnx", "--model", "{folder}"]
CALIBRATE = ["calibrate", "{folder}/c.safetensors", "--model", "{folder}"]
EVAL = ["eval", "{artifact}", "--reference", "{folder}", "--data", "{text}", "--json", "{folder}/out.json"]
VERIFY = ["verify", "{artifact}", "--model", "{folder}"]
BENCH = ["bench", "--shape", "tiny"]
REPORT = ["report", "{folder}/out.html", "--results", "{folder}"]
MISTAKES = {
    "no command": ([], "arguments are required: COMMAND"),
    "an unknown command": (["frobnicate"], "invalid choice: 'frobnicate'"),
    "an unknown option": ([*RUN, "--fast"], "unrecognized arguments: --fast"),
    "run: no model": (["run", "--prompt", "x"], "arguments are required: path"),
    "run: no prompt": (["run", "{artifact}"], "one of the arguments --prompt --prompt-file is required"),
    "run: two prompts": ([*RUN, "--prompt-file", "{text}"], "not allowed with argument"),
    "run: a model that is not there": (["run", "{folder}/no.onnx", "--prompt", "x"], "there is no file"),
    "run: an empty folder": (["run", "{folder}", "--prompt", "x"], "holds no .onnx file"),
    "run: a very long path": (["run", LONG, "--prompt", "x"], "File name too long"),
    "run: a long path in parts": (["run", "b/" * 3000, "--prompt", "x"], "File name too long"),
    "run: a path of other bytes": (["run", NOT_TEXT, "--prompt", "x"], r"there is no file a\udcffb"),
    "run: a path with a line end": (["run", "a\nb\x1b[2J", "--prompt", "x"], r"there is no file a b\x1b[2J"),
    "run: a prompt that is no text": (["run", "{artifact}", "--prompt", NOT_TEXT], "byte 0xff in it is not UTF-8"),
    "run: a stop string that is no text": ([*RUN, "--stop", NOT_TEXT], "byte 0xff in it is not UTF-8"),
    "run: an empty stop string": ([*RUN, "--stop", ""], "it must hold strings that are not empty"),
    "run: a negative stop token": ([*RUN, "--stop-token", "-1"], "a stop token is -1"),
    "run: a prompt file that is not there": (["run", "{artifact}", "--prompt-file", "{folder}/no"], "No such file"),
    "run: a prompt file that is a folder": (["run", "{artifact}", "--prompt-file", "{folder}"], "Is a directory"),
    "run: a prompt file of Latin-1": (["run", "{artifact}", "--prompt-file", "{latin}"], "not UTF-8 text: byte 3"),
    "run: a prompt file without end": (["run", "{artifact}", "--prompt-file", "/dev/zero"], "has more than 67,108,864"),
    "run: a prompt file of a long name": (["run", "{artifact}", "--prompt-file", LONG], "File name too long"),
    "run: no tokens": ([*RUN, "--max-new-tokens", "0"], "max_new_tokens is 0"),
    "run: negative tokens": ([*RUN, "--max-new-tokens", "-5"], "max_new_tokens is -5"),
    "run: tokens by a word": ([*RUN, "--max-new-tokens", "many"], "invalid int value: 'many'"),
    "run: a number of 5,000 digits": ([*RUN, "--max-new-tokens", "9" * 5000], "invalid int value"),
    "run: negative threads": ([*RUN, "--threads", "-1"], "threads is -1"),
    "run: 3000 threads": ([*RUN, "--threads", "3000"], f"this machine has {os.cpu_count()} processors"),
    "run: 2^31 threads": ([*RUN, "--threads", str(2**31)], "threads is 2147483648"),
    "run: greedy, and not": ([*RUN, "--greedy", "--top-p", "0.5"], "--greedy takes the likeliest token, and --top-p"),
    "run: a negative temperature": ([*RUN, "--temperature", "-1"], "temperature is -1"),
    "chat: no template": (["chat", "{artifact}"], "this model has no chat template"),
    "chat: a system message that is no text": (["chat", "{artifact}", "--system", NOT_TEXT], "is not UTF-8 text"),
    "chat: 3000 threads": (["chat", "{artifact}", "--threads", "3000"], "threads is 3000"),
    "inspect: a model that is not there": (["inspect", "{folder}/no.onnx", "--json"], "there is no file"),
    "inspect: another file": (["inspect", "{text}"], "was not made by clada-export"),
    "inspect: a very long path": (["inspect", LONG], "File name too long"),
    "inspect: an engine that is not there": (["inspect", "{folder}/no.engine"], "no.engine"),
    "build: a model that is not there": (["build", "{folder}/no.onnx"], "there is no file"),
    "build: a folder without a model": (["build", "{folder}"], "holds no .onnx file"),
    "build: a very long path": (["build", LONG], "File name too long"),
    "build: a negative batch": (["build", "{artifact}", "--max-batch", "-1"], "max_batch is -1"),
    "build: an output that is a folder": (["build", "{artifact}", "-o", "{folder}"], "{folder}"),
    "export: no model": (["export", "{folder}/model.onnx"], "arguments are required: --model"),
    "export: a model that is not there": ([*EXPORT[:-1], "{folder}/no"], "there is no such folder"),
    "export: a model of a long name": ([*EXPORT[:-1], f"./{LONG}"], ""),
    "export: an empty folder": (EXPORT, "holds no config.json"),
    "export: a model of other bytes": ([*EXPORT[:-1], f"./{NOT_TEXT}"], ""),
    "export: a model with a null": ([*EXPORT[:-1], "./a\0b"], ""),
    "export: an output of a long name": (["export", f"{LONG}.onnx", "--model", "{folder}"], "File name too long"),
    "export: an output that is a folder": (["export", "{folder}", "--model", "{folder}"], ".onnx file"),
    "export: a folder of that name": (["export", "{dotted}", "--model", "{folder}"], ""),
    "export: an output in a file": (["export", "{text}/model.onnx", "--model", "{folder}"], "cannot write"),
    "export: two goals": ([*EXPORT, "--ffn-cost", "0.5", "--error-budget", "1"], "not allowed with argument"),
    "export: a negative seed": ([*EXPORT, "--seed", "-1"], "seed is -1"),
    "export: no tokens": ([*EXPORT, "--calibration-tokens", "-1"], "calibration_tokens is -1"),
    "export: an old opset": ([*EXPORT, "--opset", "-20"], "opset -20 is not supported"),
    "calibrate: no model": (["calibrate", "{folder}/c.safetensors"], "arguments are required: --model"),
    "calibrate: an output of another kind": (["calibrate", "{dotted}", "--model", "x"], "ends in .safetensors"),
    "calibrate: an output in a file": (["calibrate", "{text}/c.safetensors", "--model", "x"], "cannot write"),
    "calibrate: an output of a long name": ([*CALIBRATE[:1], f"{LONG}.safetensors", *CALIBRATE[2:]], "name too long"),
    "calibrate: an empty checkpoint": (CALIBRATE, "holds no config.json"),
    "calibrate: twice all bytes": ([*CALIBRATE, "--bytes", "2"], "a share of bytes is 2.0"),
    "calibrate: a text that is not there": ([*CALIBRATE, "--calibration-data", "{folder}/no"], "cannot read"),
    "verify: no model": (["verify", "{artifact}"], "arguments are required: --model"),
    "verify: a model that is not there": (["verify", "{folder}/no.onnx", "--model", "x"], "there is no file"),
    "verify: an empty checkpoint": (VERIFY, "holds no config.json"),
    "verify: a very long path": (["verify", LONG, "--model", "{folder}"], "File name too long"),
    "eval: nothing": (["eval"], "arguments are required: path, --reference, --data, --json"),
    "eval: a model that is not there": ([*EVAL[:1], "{folder}/no.onnx", *EVAL[2:]], "there is no file"),
    "eval: an empty checkpoint": (EVAL, "holds no config.json"),
    "eval: a result that is a folder": ([*EVAL[:-1], "{folder}"], "it is a folder"),
    "eval: a result of a long name": ([*EVAL[:-1], LONG], "File name too long"),
    "eval: a result in no folder": ([*EVAL[:-1], "{folder}/no/out.json"], "No such file or directory"),
    "eval: negative sequences": ([*EVAL, "--sequences", "-1"], "sequences is -1"),
    "eval: 3000 threads": ([*EVAL, "--threads", "3000"], "threads is 3000"),
    "report: no results": (["report", "{folder}/out.html"], "arguments are required: --results"),
    "report: an empty folder": (REPORT, "{folder}"),
    "report: results that are not there": ([*REPORT[:-1], "{folder}/no"], "no"),
    "report: results of a long name": ([*REPORT[:-1], LONG], "File name too long"),
    "report: a page that is a folder": (["report", "{folder}", "--results", "{folder}"], "it is a folder"),
    "report: a prompt and no model": ([*REPORT, "--prompt", "x"], "--model and --prompt are given together"),
    "report: a prompt that is no text": ([*REPORT, "--prompt", NOT_TEXT], "is not UTF-8 text"),
    "bench: an unknown shape": (["bench", "--shape", "huge"], "no shape is called 'huge'"),
    "bench: 3000 threads": ([*BENCH, "--threads", "3000"], "threads is 3000"),
    "bench: negative rounds": ([*BENCH, "--rounds", "-1"], "rounds is -1"),
    "bench: a result that is a folder": ([*BENCH, "--json", "{folder}"], "it is a folder"),
    "bench: a picture of a long name": ([*BENCH, "--plot", f"{LONG}.png"], "File name too long"),
}


@pytest.fixture(scope="module")
def places(tiny_artifact, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mistakes")
    made = {"artifact": tiny_artifact, "folder": folder / "empty", "text": folder / "text.txt"}
    made |= {"latin": folder / "latin.txt", "dotted": folder / "dotted.onnx"}
    made["folder"].mkdir()
    made["dotted"].mkdir()
    made["text"].write_text("some text")
    made["latin"].write_bytes(b"caf\xe9")
    return made


def filled(word: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        word = word.replace("{" + name + "}", str(path))
    return word


@pytest.mark.fault("command line", "an ordinary mistake, by each verb", now="one line, exit 1 or 2, nothing written")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(places, capsys, monkeypatch, name):
    words, message = MISTAKES[name]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    capsys.readouterr()
    try:
        code = clada_main([filled(word, places) for word in words])
    except SystemExit as exit_info:
        code = exit_info.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert code in (1, 2)
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert filled(message, places) in lines[0]
    assert len(lines[0]) < 1500
    assert "Traceback" not in out
    assert list(places["folder"].iterdir()) == []


def test_every_verb_has_mistakes():
    verbs = {name.split(":")[0] for name in MISTAKES if ":" in name}
    assert verbs == {"run", "chat", "inspect", "build", "calibrate", "export", "verify", "eval", "report", "bench"}


def test_clada_export_says_the_same(places, capsys):
    words = [filled(word, places) for word in EXPORT]
    assert clada_main(words) == export_main(words[1:]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == second


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\t\r\nc", "a b c"),
        ("a\x1b[31m\x07b\x00\x9b", r"a\x1b[31m\x07b\x00\x9b"),
        ("\udcff\u202e", r"\udcff\u202e"),
        ("naïve → 日本", "naïve → 日本"),
    ],
)
def test_a_message_is_a_line_of_printable_characters(text, line):
    assert one_line(text) == line


class Closed(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device"), 1, "error: the system refused: No space left on device\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_output_that_cannot_be_written(monkeypatch, capsys, error, code, message):
    monkeypatch.setattr("sys.stdout", Closed(error))
    assert exit_code(lambda: print("x")) == code
    assert exit_code(lambda: sys.exit(0)) == code
    assert capsys.readouterr().err == message * 2


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (CladaError("two\nlines"), 1, "error: two lines\n"),
        (OSError(13, "Permission denied", "secret"), 1, "error: secret: Permission denied\n"),
        (MemoryError(), 1, "error: there is not enough memory\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_ends_a_command(capsys, raised, code, message):
    def command() -> None:
        raise raised

    assert exit_code(command) == code
    assert capsys.readouterr().err == message


def process(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from clada.runtime.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **options.pop("env", {})}
    call = [sys.executable, "-c", code, *words]
    return subprocess.run(call, stderr=subprocess.PIPE, text=True, check=False, env=environment, cwd=ROOT, **options)


@pytest.mark.fault("command line", "a standard output that is full", now="one line, exit code 1")
@pytest.mark.parametrize("words", [["--help"], ["inspect", "{artifact}"], ["run", "{artifact}", "--prompt", "x"]])
def test_a_full_standard_output(places, words):
    with open("/dev/full", "w") as full:
        result = process([filled(word, places) for word in words], stdout=full)
    assert (result.returncode, result.stderr) == (1, "error: the system refused: No space left on device\n")


@pytest.mark.fault("command line", "a terminal of ASCII or Latin-1", now="a question mark for what it does not have")
def test_a_terminal_without_the_character(places):
    for encoding in ("latin-1", "ascii"):
        code = "from clada.command_line import exit_code; import sys; sys.exit(exit_code(lambda: print('a → b')))"
        call = [sys.executable, "-c", code]
        result = subprocess.run(
            call, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, b"a ? b\n", b"")


@pytest.mark.fault("command line", "a UTF-8 prompt where the locale is ASCII", now="read as UTF-8")
def test_a_prompt_in_an_ascii_locale(places):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["run", str(places["artifact"]), "--prompt", "x → y", "--max-new-tokens", "1"]
    result = process(words, env=locale, stdout=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, "")


# A module that ends the process where it is interrupted, as native ones may, and takes a second to import.
_ABORTS = """
import os, time
print("begun", flush=True)
try:
    time.sleep(1)
except KeyboardInterrupt:
    os.abort()
"""
_IMPORTS_IT = """
import sys
from clada.command_line import exit_code
def command():
    import aborts
    print("imported", flush=True)
    sys.stdin.read()
sys.exit(exit_code(command))
"""


def test_an_interrupt_waits_for_an_import(tmp_path):
    """Its C++ may abort the process on an exception of Python."""
    (tmp_path / "aborts.py").write_text(_ABORTS)
    call = [sys.executable, "-c", _IMPORTS_IT]
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen(call, text=True, env={**os.environ, "PYTHONPATH": paths}, **pipes)
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 130
    out, err = running.communicate()
    assert out in ("", "imported\n")
    assert err == ""


def test_an_interrupt_that_waited_is_left_to_who_handles_them_by_then():
    """As in work that defers them until it is done."""
    handled = []

    def command():
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # as after one within an import
        before = signal.signal(signal.SIGINT, lambda number, _frame: handled.append(number))
        time.sleep(0.1)
        signal.signal(signal.SIGINT, before)

    assert exit_code(command) == 0
    assert handled == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.fault("command line", "Ctrl-C while modules are imported", now="exit code 130, and not a word")
@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_an_early_interrupt(places, seconds):
    code = "import sys; from clada.runtime.cli import main; print('begun', flush=True); sys.exit(main())"
    call = [sys.executable, "-c", code, "verify", str(places["artifact"]), "--model", str(places["artifact"].parent)]
    running = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout is not None
    running.stdout.readline()
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode in (130, 1)
    assert "Traceback" not in err
    assert err == "" if running.returncode == 130 else err.startswith("error: ")
