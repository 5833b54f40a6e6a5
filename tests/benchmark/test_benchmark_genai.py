"""The benchmark against onnxruntime-genai: the same model on both sides, decoded after the same context."""

import json
from functools import partial

import numpy as np
import pytest

from clada.benchmark import genai as genai_benchmark
from clada.benchmark import genai_files
from clada.benchmark.contender import GENAI, ours
from clada.benchmark.decode_loops import TOKENS, GenaiLoop, OurLoop, load_genai, load_ours
from clada.benchmark.footprint import footprint
from clada.benchmark.genai import SHARE, genai_contenders, written_models
from clada.benchmark.shapes import SHAPES, random_tokens
from clada.errors import CladaError
from clada.runtime.cli import main as clada_main
from tests.project.test_bad_input import fails_with
from tests.support.exhaustive import exhaustive
from tests.support.own_process import written_here

SHAPE = SHAPES["tiny"]
CONTEXT = 40


@pytest.fixture(scope="module")
def files():
    pytest.importorskip("onnxruntime_genai")
    with written_here(genai_benchmark), written_models(SHAPE) as written:
        yield written


@pytest.fixture(scope="module")
def genai(files):
    return load_genai(files.genai, 1)


@pytest.fixture(scope="module")
def session(files):
    return load_ours(files.ours, 1)


def test_both_read_the_same_model(genai, session):
    """By their predictions after the context; the share that ours reads follows from the neurons it computed."""
    theirs, own = genai_contenders(SHAPE, CONTEXT, genai, session)
    assert (theirs.name, own.name) == (GENAI, ours(SHARE, "int4"))
    assert own.error < 0.3
    own.prepare()
    assert own.run() == pytest.approx(SHARE, abs=0.05)
    theirs.prepare()
    assert theirs.run() == 1
    neurons = SHAPE.layers * 3 * SHAPE.hidden * SHAPE.neurons
    assert own.active_bytes == pytest.approx(2 / 3 * neurons * (1 / 2 + 1 / 16))
    everything = own.always_bytes + own.active_bytes
    assert theirs.always_bytes - everything == pytest.approx(neurons / 16)


def test_models_that_differ_are_refused(genai, session, monkeypatch):
    """Another context has other logits."""
    from clada.benchmark import genai as module

    monkeypatch.setattr(module, "GenaiLoop", lambda model, prompt: GenaiLoop(model, prompt[:, ::-1]))
    with pytest.raises(CladaError, match="ours 40% int4 does not compute what it should"):
        genai_contenders(SHAPE, CONTEXT, genai, session)


def test_a_generator_goes_back_to_the_context(genai):
    loop = GenaiLoop(genai, random_tokens(SHAPE, CONTEXT, seed=2))
    texts = []
    for _ in range(2):
        loop.go_back()
        loop.run()
        texts.append(loop.text())
    assert len(texts[0]) == CONTEXT + 2 + TOKENS
    assert texts[0] == texts[1]


def test_a_session_goes_back_to_the_context(session):
    """It reads the same after the same context, whatever came in between."""
    ids = random_tokens(SHAPE, TOKENS + 1, seed=3)
    loop = OurLoop(session, random_tokens(SHAPE, CONTEXT, seed=2), ids)
    results = []
    for _ in range(2):
        loop.go_back()
        results.append((loop.run(), loop.length()))
    assert results[0] == results[1]
    assert results[0][1] == CONTEXT + 1 + TOKENS


def _allocated(size):
    return np.ones(size, np.uint8)


def test_a_footprint_is_that_of_what_was_loaded(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(1000))
    size = 100_000_000
    found = footprint("shape", "name", partial(_allocated, size), len, weights, rounds=2)
    assert (found.shape, found.name, found.weight_bytes) == ("shape", "name", 1000)
    assert found.resident_bytes - found.before_bytes == pytest.approx(size, rel=0.1)
    assert len(found.load_samples) == 2
    assert found.load_seconds == pytest.approx(np.median(found.load_samples))


@pytest.mark.usefixtures("files")
@exhaustive
def test_command_compares_decode_and_loading(tmp_path, capsys):
    path = tmp_path / "out.json"
    options = ["--shape", "tiny", "--what", "genai", "--rounds", 2, "--threads", 1, "--json", path]
    assert clada_main(["bench", *map(str, options)]) == 0
    report = json.loads(path.read_text())
    assert [(table["what"], table["context"]) for table in report["tables"]] == [("genai", 64), ("genai", 2048)]
    for table in report["tables"]:
        theirs, own = table["rows"]
        assert own["ratio"] == pytest.approx(np.median(np.array(theirs["samples_ms"]) / np.array(own["samples_ms"])))
    assert [one["name"] for one in report["footprints"]] == [GENAI, ours(SHARE, "int4")]
    # What measures must not weigh as much as what is measured: no torch.
    assert all(one["before_bytes"] < 150e6 for one in report["footprints"])
    assert f"vs {GENAI}" in capsys.readouterr().out


def test_without_the_package_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(genai_files, "_GENAI", "no_such_package")
    options = ["bench", "--shape", "tiny", "--what", "genai"]
    fails_with(capsys, clada_main, options, "onnxruntime-genai is not installed: pip install 'clada[genai]'")
