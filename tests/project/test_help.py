"""Help of every verb: quick, independent of the libraries of the work, and true to the installation."""

import json
import subprocess
import sys
from importlib.metadata import distribution, entry_points

import pytest

from clada.exporter.calibration.policies import POLICIES, SUMMARIES
from clada.exporter.cli import main as export_main
from clada.runtime.cli import main as clada_main

VERBS = ("run", "chat", "inspect", "build", *sorted(entry_points(group="clada.commands").names))
COMMANDS = [["clada"], *(["clada", verb] for verb in VERBS), ["clada-export"]]
# Those that take long, or that an installation of the runtime alone lacks.
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "matplotlib", "statsmodels", "onnxruntime", "tokenizers")
# Asks for each command's help in one interpreter; the first pays for what all import.
PROGRAM = f"""
import contextlib, io, json, sys, time
asked = []
for name, *words in {COMMANDS!r}:
    start = time.process_time() if asked else 0
    if name == "clada-export":
        from clada.exporter.cli import main
    else:
        from clada.runtime.cli import main
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    imported = sorted(set(sys.modules) & set({HEAVY!r}))
    asked.append((imported, time.process_time() - start, len(text.getvalue())))
print(json.dumps(asked))
"""


@pytest.mark.fault("command line", "help of every verb", now="under a second of processor time, without torch")
def test_help_needs_nothing_that_the_work_needs(record_property):
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    asked = dict(zip(map(" ".join, COMMANDS), json.loads(result.stdout), strict=True))
    record_property("cases", len(asked))
    assert {name: imported for name, (imported, _, _) in asked.items() if imported} == {}
    # What lm-eval's own parser imports is its own.
    slow = {name: seconds for name, (_, seconds, _) in asked.items() if seconds >= 1}
    assert slow.keys() <= {"clada lm-eval"}, slow
    assert {name: length for name, (_, _, length) in asked.items() if length < 200} == {}
    assert result.stderr == ""


def shown(capsys, main, *words: str) -> str:
    capsys.readouterr()
    try:
        assert main(list(words)) == 0
    except SystemExit as exit_info:
        assert exit_info.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.fault("command line", "--version", now="the release that is installed")
@pytest.mark.parametrize("main", [clada_main, export_main])
def test_version(capsys, main):
    assert shown(capsys, main, "--version") == f"clada {distribution('clada').version}"


def test_each_verb_says_in_a_line_what_it_does(capsys):
    text = shown(capsys, clada_main, "--help")
    for line in ("time an artifact, or the ops", "measure what sparsity costs", "make a sparse ONNX model"):
        assert line in text
    assert "needs clada" not in text


@pytest.mark.fault(
    "command line", "an extra that is (not) installed", now="help says `needs clada[x]` only where it is not"
)
def test_what_is_not_installed_is_said_beside_what_needs_it(capsys, monkeypatch):
    from clada.runtime import cli

    def missing(name: str) -> object:
        if name == "lm-eval":
            raise cli.PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(cli, "distribution", missing)
    text = shown(capsys, clada_main, "--help")
    assert "against the checkpoint (needs clada[eval])" in text
    assert text.count("needs clada[eval]") == 3
    assert text.count("needs") == 3


@pytest.mark.parametrize("verb", VERBS)
def test_percent_signs_are_single(capsys, verb):
    assert "%%" not in shown(capsys, clada_main, verb, "--help")


def test_policies_are_explained(capsys):
    assert list(SUMMARIES) == list(POLICIES)
    text = shown(capsys, clada_main, "export", "--help")
    assert text.replace("clada export", "clada-export") == shown(capsys, export_main, "--help").replace(
        "[-h] [--version]", "[-h]"
    ).replace("--version show program's version number and exit ", "")
    for name, summary in SUMMARIES.items():
        assert f"{name} {summary}" in text


@pytest.mark.fault("command line", "clada lm-eval --help", now="says that the model is clada, and by which options")
def test_lm_eval_help_names_our_model(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clada"])
    text = shown(capsys, clada_main, "lm-eval", "--help")
    assert "default: clada" in text
    assert "default: hf" not in text
    assert text.startswith("usage: clada lm-eval --model_args model=PATH")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "x"], ["run", "--model", "clada", "--tasks", "x"]),
        (["run", "--tasks", "x"], ["run", "--model", "clada", "--tasks", "x"]),
        (["ls", "tasks"], ["ls", "tasks"]),
    ],
)
def test_lm_eval_gets_its_own_subcommands(options, words):
    from clada.evaluation.lm_eval_command import _words

    assert _words(options) == words
