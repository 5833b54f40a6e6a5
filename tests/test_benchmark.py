"""The benchmark measures what it claims: contenders that agree, exact shares, ratios of its own figures."""

import json
from collections import Counter

import numpy as np
import onnx_ir
import pytest

from clada.benchmark.contender import INT4, REFERENCE, TORCH, ours
from clada.benchmark.int4 import BLOCK, quantise
from clada.benchmark.layer import layer_contenders, opened_layer
from clada.benchmark.layer_graph import exact_threshold, random_input
from clada.benchmark.model import model_contenders, opened_model
from clada.benchmark.sessions import Bound
from clada.benchmark.settings import Settings
from clada.benchmark.shapes import SHAPES
from clada.plugins.onnxruntime import library
from clada.plugins.ops import SPARSE_GATED_FFN
from clada.runtime.cli import main as clada_main
from tests.test_bad_input import fails_with

SHAPE = SHAPES["tiny"]


@pytest.fixture(scope="module")
def layer():
    with opened_layer(SHAPE, threads=1) as opened:
        yield opened


def _dense_inputs(tokens):
    return {
        "threshold": np.zeros(SHAPE.neurons, np.float32),
        "scale": np.zeros((1, tokens), np.float32),
        "pool": np.ones((1, SHAPE.neurons), np.bool_),
    }


def _of_copies(layer, inputs):
    """The op's inputs as the graph has them, thresholds for each copy."""
    rest = {name: array for name, array in inputs.items() if name != "threshold"}
    return rest | {f"threshold.{copy}": np.roll(inputs["threshold"], copy) for copy in range(layer.copies)}


@pytest.mark.parametrize("tokens", [1, 5])
def test_dense_layers_agree(layer, tokens):
    """The dense graph, the 4-bit one and torch compute what our op does; none is compared with itself."""
    contenders = {c.name: c for c in layer_contenders(layer, tokens, ()) if c.run is not None}
    x = random_input(SHAPE.hidden, tokens)
    dense = _dense_inputs(tokens)
    expected = SPARSE_GATED_FFN.reference(x, *layer.weights.values(), *dense.values(), activation="silu")[0]
    bound = Bound(layer.dense, _of_copies(layer, {"x": x} | dense), ["y.0"])
    bound.run()
    np.testing.assert_allclose(bound.results()["y.0"], expected, atol=1e-5 * np.abs(expected).max())
    assert {REFERENCE, INT4, TORCH, ours(None, "")} <= set(contenders)
    assert contenders[TORCH].error < 1e-5
    assert contenders[ours(None, "")].error < 1e-5
    assert 0.01 < contenders[INT4].error < 0.3


@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.37, 0.001])
def test_active_fraction_is_exact(layer, fraction):
    """By the op's own count, and the neurons kept are those with the largest activations."""
    x = random_input(SHAPE.hidden, 1)
    inputs = _dense_inputs(1) | {
        "x": x,
        "threshold": exact_threshold(layer.weights, x, fraction),
        "scale": np.ones((1, 1), np.float32),
    }
    bound = Bound(layer.ours[""], _of_copies(layer, inputs), ["active.0", "score.0"])
    bound.run()
    results = bound.results()
    assert results["active.0"].item() == round(fraction * SHAPE.neurons)
    z = layer.weights["w_gate"].astype(np.float64) @ x.ravel()
    magnitude = np.abs(z / (1 + np.exp(-z)))
    kept = results["score.0"][0] > 0
    assert kept.sum() == round(fraction * SHAPE.neurons)
    assert magnitude[kept].min(initial=np.inf) > magnitude[~kept].max(initial=0)


def test_bytes_are_those_of_the_matrices(layer):
    """A dense layer is read whole; ours all gates, and the rest for active neurons; 4 bits and a scale a block."""
    size = 3 * SHAPE.hidden * SHAPE.neurons * 4
    contenders = {c.name: c for c in layer_contenders(layer, 1, (0.4,))}
    assert contenders[REFERENCE].always_bytes == contenders[TORCH].always_bytes == size
    sparse = contenders[ours(0.4, "")]
    assert sparse.always_bytes + sparse.active_bytes == pytest.approx(size)
    assert sparse.always_bytes == pytest.approx(size / 3)
    assert contenders[INT4].always_bytes == size / 8 + size / BLOCK


@pytest.fixture(scope="module")
def model():
    with opened_model(SHAPE, Settings(active=(0.5, 0.2), threads=1, context=40)) as opened:
        yield opened


@pytest.mark.parametrize("tokens", [1, 30])
def test_whole_models_agree(model, tokens):
    """In prefill and in decode after a context, by their logits; what is active is near what was asked for."""
    contenders = {c.name: c for c in model_contenders(model, tokens, (0.5, 0.2)[: 2 * (tokens == 1)])}
    assert contenders[REFERENCE].error == 0
    assert contenders[TORCH].error < 1e-4
    assert contenders[ours(None, "")].error < 1e-4
    assert 0.01 < contenders[INT4].error < 0.5
    assert contenders[ours(None, "")].run() == 1
    for share in (0.5, 0.2) if tokens == 1 else ():
        assert contenders[ours(share, "")].run() == pytest.approx(share, abs=0.1)
        assert contenders[ours(share, "")].error is None


def test_dense_graphs_hold_nothing_of_ours(model):
    """Beside what replaces our ops the graph is the same, and in 4 bits all that is multiplied with a matrix."""
    graphs = {name: onnx_ir.load(getattr(model.variants, name).path).graph for name in ("ours", "dense", "int4")}
    count = {name: Counter((node.domain, node.op_type) for node in graph) for name, graph in graphs.items()}
    assert count["ours"]["clada", "SparseGatedFFN"] == SHAPE.layers
    assert not [domain for domain, _ in [*count["dense"], *count["int4"]] if domain == "clada"]
    matrices = 4 * SHAPE.layers + 1
    products = count["ours"]["", "MatMul"] - matrices
    assert count["dense"]["", "MatMul"] == products + matrices + 3 * SHAPE.layers
    assert count["int4"]["", "MatMul"] == products
    assert count["int4"]["com.microsoft", "MatMulNBits"] == matrices + 3 * SHAPE.layers
    weights = 4 * (SHAPE.layers * 3 * SHAPE.hidden * SHAPE.neurons)
    attention = SHAPE.layers * SHAPE.hidden**2 * (2 + 2 * SHAPE.key_value_heads / SHAPE.heads)
    others = 4 * (attention + SHAPE.vocabulary * SHAPE.hidden)
    assert (model.variants.ours.neuron_bytes, model.variants.ours.other_bytes) == (weights, others)
    assert (model.variants.dense.neuron_bytes, model.variants.dense.other_bytes) == (0, weights + others)
    assert model.variants.int4.other_bytes == (weights + others) * (1 / 8 + 1 / BLOCK)
    names = {name: [value.name for value in [*graph.inputs, *graph.outputs]] for name, graph in graphs.items()}
    assert names["ours"] == names["dense"] == names["int4"]


def test_quantised_weights_are_near():
    matrix = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    matrix[:BLOCK, 2] = 0
    packed, scales = quantise(matrix)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(5, -1, BLOCK)
    restored = ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(5, -1).T
    assert np.abs(restored - matrix).max() <= scales.max() / 2 * 1.0001
    assert not restored[:BLOCK, 2].any()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of the command, with the files it wrote and the text it printed."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", folder / "out.json", "--plot", folder / "out.png"]
    options = ["--shape", "tiny", "--active", 0.5, 0.25, "--rounds", 3, "--threads", 1, *files]
    assert clada_main(["bench", *map(str, options)]) == 0
    return folder, json.loads((folder / "out.json").read_text())


def test_json_has_every_contender(report):
    tables = {(table["what"], table["phase"]): table for table in report[1]["tables"]}
    names = {what: [row["name"] for row in table["rows"]] for what, table in tables.items()}
    dense = [REFERENCE, INT4, TORCH]
    sparse = [ours(share, weights) for weights in ("", "bfloat16") for share in (None, 0.5, 0.25)]
    assert set(names) == {(what, phase) for what in ("layer", "model") for phase in ("decode", "prefill")}
    for what in ("layer", "model"):
        assert names[what, "decode"] == dense + sparse
        assert names[what, "prefill"] == [*dense, ours(None, ""), ours(None, "bfloat16")]
    assert report[1]["settings"] | {"active": [0.5, 0.25], "rounds": 3, "threads": 1} == report[1]["settings"]
    assert report[1]["machine"]["versions"]["onnxruntime"]


def test_ratios_are_quotients_of_the_figures(report):
    for table in report[1]["tables"]:
        reference = np.array(next(row["samples_ms"] for row in table["rows"] if row["name"] == REFERENCE))
        for row in table["rows"]:
            assert bool(row["missing"]) == (row["ms"] is None)
            if row["missing"]:
                continue
            times = np.array(row["samples_ms"])
            assert row["ms"] == pytest.approx(np.median(times))
            assert row["ratio"] == pytest.approx(np.median(reference / times))
            if table["phase"] == "prefill":
                assert row["floor_share"] is None
                continue
            floor_ms = row["bytes_read"] / np.array(row["bandwidth_gigabytes_per_second"]) / 1e6
            assert row["floor_share"] == pytest.approx(np.median(floor_ms / times))
            assert row["gigabytes_per_second"] == pytest.approx(row["bytes_read"] / row["ms"] / 1e6)


def test_plot_is_an_image(report, tmp_path):
    assert (report[0] / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in report[0].iterdir()) == ["out.json", "out.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "huge"], "no shape is called 'huge'; known are: qwen2.5-0.5b, "),
        (["--shape", "llama-3-8b", "--what", "model"], "of llama-3-8b only a layer is measured"),
        (["--active", "0"], "an active fraction is 0.0; it must lie in (0, 1]"),
        (["--active", "1.5"], "an active fraction is 1.5"),
        (["--active", "nan"], "an active fraction is nan"),
        (["--active", "0.5", "0.5"], "an active fraction is given twice"),
        (["--rounds", "0"], "rounds is 0"),
        (["--threads", "-1"], "threads is -1"),
        (["--json", "/nowhere/out.json"], "cannot write /nowhere/out.json: No such file"),
        (["--json", "/"], "cannot write /: it is a folder"),
        (["--plot", "out.gif"], "cannot plot to out.gif: its suffix must be one of .png, .svg"),
    ],
)
def test_bad_input_is_refused_before_measuring(capsys, monkeypatch, options, message):
    monkeypatch.setattr("clada.benchmark.command._TABLES", {"layer": None, "model": None})
    shape = [] if "--shape" in options else ["--shape", "tiny"]
    fails_with(capsys, clada_main, ["bench", *shape, *options], message)


def test_without_kernels_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setitem(library._NAMES, "cpu", "absent.so")
    fails_with(capsys, clada_main, ["bench", "--shape", "tiny"], "has no native kernels (absent.so)")
