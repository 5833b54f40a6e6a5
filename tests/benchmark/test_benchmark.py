"""Benchmark: contenders that agree, exact shares, and ratios of its own figures."""

import json
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir
import pytest

from clada.benchmark import whole_model
from clada.benchmark.contender import GENAI, REFERENCE, TORCH, checked_error, dense, ours
from clada.benchmark.dense_copy import dense_copy
from clada.benchmark.equal_quality import equal_quality_lines
from clada.benchmark.footprint import Footprint
from clada.benchmark.layer import layer_contenders, opened_layer
from clada.benchmark.layer_graph import exact_threshold, random_input
from clada.benchmark.layer_output import layer_output, weights_of_ours
from clada.benchmark.linears import linears_contenders, opened_linears
from clada.benchmark.llama_cpp import LlamaProcess
from clada.benchmark.matmul_nbits import packed
from clada.benchmark.opened_artifact import has_dense, precision_of
from clada.benchmark.precisions import BLOCKS, PRECISIONS, Blocks
from clada.benchmark.quality import Qualities, Quality
from clada.benchmark.report import Row, Table, table_lines
from clada.benchmark.sessions import Bound
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import SHAPES
from clada.benchmark.targets import target_lines, targets
from clada.benchmark.whole_model import model_contenders, opened_model
from clada.contract.artifact import in_place_name, open_artifact
from clada.errors import CladaError
from clada.evaluation.exported import evaluate_artifact
from clada.evaluation.reference import dense_logits
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.statistics import Estimate
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.defaults import FORMATS, METHODS
from clada.exporter.export import ExportConfig, export
from clada.ops import DOMAIN, SPARSE_GATED_FFN
from clada.ops.block_quantization import quantize
from clada.plugins.onnxruntime import library
from clada.runtime.cli import main as clada_main
from tests.conftest import HELDOUT
from tests.project.test_bad_input import fails_with
from tests.support.checkpoints import random_model, write_checkpoint
from tests.support.gguf_files import write_gguf
from tests.support.own_process import written_here

SHAPE = SHAPES["tiny"]


@pytest.fixture(scope="module")
def layer():
    with opened_layer(SHAPE, BenchSettings(threads=1)) as opened:
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
    """Each computes the result of its own weights, by the op's reference; none is compared with itself."""
    contenders = {c.name: c for c in layer_contenders(layer, tokens, ()) if c.run is not None}
    x = random_input(SHAPE.hidden, tokens)
    inputs = _dense_inputs(tokens)
    expected = SPARSE_GATED_FFN.reference(x, *layer.weights.values(), *inputs.values(), activation="silu")[0]
    bound = Bound(layer.dense["float32"], _of_copies(layer, {"x": x} | inputs), ["y.0"])
    bound.run()
    np.testing.assert_allclose(bound.results()["y.0"], expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(
        layer_output(layer.weights, x, inputs["threshold"]), expected, atol=1e-5 * np.abs(expected).max()
    )
    assert set(contenders) == {
        TORCH,
        *(ours(None, precision) for precision in PRECISIONS),
        *(dense(precision) for precision in ("float32", *BLOCKS)),
    }
    for name in (REFERENCE, TORCH, ours(None, "float32")):
        assert contenders[name].error < 1e-5
    for name in map(dense, BLOCKS):
        assert 1e-3 < contenders[name].error < 0.03


@pytest.mark.parametrize("precision", ["float32", *BLOCKS])
@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.37, 0.001])
def test_active_fraction_is_exact(layer, precision, fraction):
    """By the op's own count, and the neurons kept are those with the largest activations."""
    x = random_input(SHAPE.hidden, 1)
    own = weights_of_ours(layer.weights, precision)
    inputs = _dense_inputs(1) | {
        "x": x,
        "threshold": exact_threshold(own, x, fraction),
        "scale": np.ones((1, 1), np.float32),
    }
    bound = Bound(layer.ours[precision], _of_copies(layer, inputs), ["active.0", "score.0"])
    bound.run()
    results = bound.results()
    assert results["active.0"].item() == round(fraction * SHAPE.neurons)
    z = own["w_gate"].astype(np.float64) @ x.ravel()
    magnitude = np.abs(z / (1 + np.exp(-z)))
    kept = results["score.0"][0] > 0
    assert kept.sum() == round(fraction * SHAPE.neurons)
    assert magnitude[kept].min(initial=np.inf) > magnitude[~kept].max(initial=0)


def test_bytes_are_those_of_the_matrices(layer):
    """A dense layer is read whole; ours all gates, and the rest for active neurons; codes, and a scale a block."""
    elements = 3 * SHAPE.hidden * SHAPE.neurons
    contenders = {c.name: c for c in layer_contenders(layer, 1, (0.4,))}
    assert contenders[REFERENCE].always_bytes == contenders[TORCH].always_bytes == 4 * elements
    sizes = {"float32": 4 * elements, "bfloat16": 2 * elements}
    for precision, blocks in BLOCKS.items():
        codes = elements * blocks.bits / 8
        assert contenders[dense(precision)].always_bytes == codes + 4 * elements / blocks.block_size
        sizes[precision] = codes + 2 * elements / blocks.block_size
    for precision, size in sizes.items():
        sparse = contenders[ours(0.4, precision)]
        assert sparse.always_bytes + sparse.active_bytes == pytest.approx(size)
        assert sparse.always_bytes == pytest.approx(size / 3)


def test_a_sparse_layer_that_computes_something_else_is_refused(layer, monkeypatch):
    """Its output is checked, not only its number of active neurons."""

    def fewer(weights, x, threshold):
        return layer_output(weights, x, 3 * threshold)

    monkeypatch.setattr("clada.benchmark.layer.layer_output", fewer)
    with pytest.raises(CladaError, match="ours 40% float32 does not compute what it should"):
        layer_contenders(layer, 1, (0.4,))


@pytest.fixture(scope="module")
def linears():
    with opened_linears(SHAPE, BenchSettings(threads=1)) as opened:
        yield opened


@pytest.mark.parametrize("tokens", [1, 13])
def test_linears_agree_and_are_read_whole(linears, tokens):
    """Attention's products and the feed-forward network's, by float64; dense ones read whole matrices."""
    contenders = {c.name: c for c in linears_contenders(linears, tokens, ())}
    assert set(contenders) == {dense(p) for p in ("float32", *BLOCKS)} | {ours(None, p) for p in PRECISIONS}
    hidden, neurons = SHAPE.hidden, SHAPE.neurons
    elements = hidden * (2 * hidden + 2 * hidden // 2) + 3 * hidden * neurons
    assert contenders[REFERENCE].active_bytes == contenders[ours(None, "float32")].active_bytes == 4 * elements
    assert contenders[ours(None, "bfloat16")].active_bytes == 2 * elements
    # Codes and, for each 32 of them, a scale, in 16 bits; the dense graph's are in 32.
    assert contenders[ours(None, "int4")].active_bytes == elements * (4 / 8 + 2 / 32)
    assert contenders[dense("int4")].active_bytes == elements * (4 / 8 + 4 / 32)
    for name in (REFERENCE, ours(None, "float32")):
        assert contenders[name].error < 1e-5
    x = np.random.default_rng(2).standard_normal((1, tokens, hidden)).astype(np.float32)
    scale = np.zeros((1, tokens), np.float32)
    others = {f"x.{name}": np.zeros((1, tokens, len(w)), np.float32) for name, w in linears.weights.items()}
    thresholds = {f"threshold.{name}": np.zeros(len(w), np.float32) for name, w in linears.weights.items()}
    bound = Bound(linears.ours["float32"], others | thresholds | {"x.o": x, "scale": scale}, ["y.o.0", "y.qkv.0"])
    bound.run()
    expected = x.astype(np.float64) @ linears.weights["o"]
    np.testing.assert_allclose(bound.results()["y.o.0"], expected, atol=1e-5 * np.abs(expected).max())
    assert not bound.results()["y.qkv.0"].any()


@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.02])
def test_share_of_inputs_is_exact(linears, fraction):
    run = {c.name: c.run for c in linears_contenders(linears, 1, (fraction,))}
    for precision in PRECISIONS:
        assert run[ours(fraction, precision)]() == fraction


def test_linears_that_compute_something_else_are_refused(linears, monkeypatch):
    """Thresholds that keep too many are found by the op's own count, others by its output."""

    def nothing_dropped(magnitude, _):
        return np.zeros(magnitude.shape[1], np.float32), np.ones(1, np.float32)

    monkeypatch.setattr("clada.benchmark.linears.exact_share", nothing_dropped)
    with pytest.raises(CladaError, match=r"ours 40% float32 kept 128 inputs of qkv instead of 51"):
        linears_contenders(linears, 1, (0.4,))


@pytest.fixture(scope="module")
def model():
    settings = BenchSettings(active=(0.5, 0.2), threads=1, context=40)
    with written_here(whole_model), opened_model(SHAPE, settings) as opened:
        yield opened


@pytest.mark.parametrize("tokens", [1, 30])
def test_whole_models_agree(model, tokens):
    """In prefill and in decode after a context, by their logits; the active share is near the target."""
    contenders = {c.name: c for c in model_contenders(model, tokens, (0.5, 0.2)[: 2 * (tokens == 1)])}
    assert contenders[REFERENCE].error == 0
    assert contenders[TORCH].error < 1e-4
    assert contenders[ours(None, "float32")].error < 1e-4
    assert 0.01 < contenders[dense("int4")].error < 0.5
    assert 0.01 < contenders[ours(None, "int4")].error < 0.5
    for precision in ("float32", "int4"):
        assert contenders[ours(None, precision)].run() == 1
        for share in (0.5, 0.2) if tokens == 1 else ():
            assert contenders[ours(share, precision)].run() == pytest.approx(share, abs=0.1)
            assert contenders[ours(share, precision)].error is None


def _operators(graph):
    return Counter((node.domain, node.op_type) for node in onnx_ir.load(graph.path).graph)


def test_dense_graphs_hold_nothing_of_ours(model):
    """Except for the replacements of our ops the graph is the same, and in 4 bits all constant matrices are packed."""
    variants = model.variants
    sparse = {name: _operators(graph) for name, graph in variants.ours.items()}
    without = {name: _operators(graph) for name, graph in variants.dense.items()}
    assert sparse["float32"]["clada", "SparseGatedFFN"] == SHAPE.layers
    assert not [domain for domain, _ in [*without["float32"], *without["int4"]] if domain == "clada"]
    matrices = 4 * SHAPE.layers + 1
    products = sparse["float32"]["", "MatMul"] - matrices
    assert without["float32"]["", "MatMul"] == products + matrices + 3 * SHAPE.layers
    assert without["int4"]["", "MatMul"] == sparse["int4"]["", "MatMul"] == products
    assert without["int4"]["com.microsoft", "MatMulNBits"] == matrices + 3 * SHAPE.layers
    assert sparse["int4"]["com.microsoft", "MatMulNBits"] == matrices
    assert sparse["int4"]["clada", "QuantizedSparseGatedFFN"] == SHAPE.layers
    assert sparse["int4"]["clada", "SparseGatedFFN"] == 0
    weights = 4 * (SHAPE.layers * 3 * SHAPE.hidden * SHAPE.neurons)
    attention = SHAPE.layers * SHAPE.hidden**2 * (2 + 2 * SHAPE.key_value_heads / SHAPE.heads)
    others = 4 * (attention + SHAPE.vocabulary * SHAPE.hidden)
    in_products, in_ours = 1 / 8 + 1 / 32, 1 / 8 + 1 / 64
    assert (variants.ours["float32"].neuron_bytes, variants.ours["float32"].other_bytes) == (weights, others)
    assert (variants.dense["float32"].neuron_bytes, variants.dense["float32"].other_bytes) == (0, weights + others)
    assert variants.dense["int4"].other_bytes == (weights + others) * in_products
    assert variants.ours["int4"].neuron_bytes == weights * in_ours
    assert variants.ours["int4"].other_bytes == others * in_products
    names = [
        [value.name for value in [*graph.inputs, *graph.outputs]]
        for graph in (onnx_ir.load(of.path).graph for of in [*variants.ours.values(), *variants.dense.values()])
    ]
    assert all(of == names[0] for of in names)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_those_of_the_ops(bits):
    """MatMulNBits counts codes from the middle of their range, and stands for the same weights."""
    matrix = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    codes, scales = packed(matrix, Blocks(bits, 32))
    halves = np.stack([codes & 15, codes >> 4], axis=-1) if bits == 4 else codes
    restored = (halves.reshape(5, 2, 32).astype(np.float32) - (1 << bits - 1)) * scales[..., None]
    assert np.abs(restored.reshape(5, 64).T - matrix).max() <= np.abs(scales).max()
    expected = quantize(np.ascontiguousarray(matrix.T), bits, 32)[1].astype(np.float32)
    np.testing.assert_array_equal(scales, expected)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of the command, with the files it wrote and the text it printed."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", folder / "out.json", "--plot", folder / "out.png"]
    options = ["--shape", "tiny", "--active", 0.5, 0.25, "--rounds", 3, "--threads", 1, *files]
    with written_here(whole_model):
        assert clada_main(["bench", *map(str, options)]) == 0
    return folder, json.loads((folder / "out.json").read_text())


def test_json_has_every_contender(report):
    tables = {(table["what"], table["phase"]): table for table in report[1]["tables"]}
    names = {what: [row["name"] for row in table["rows"]] for what, table in tables.items()}
    assert set(names) == {(what, phase) for what in ("layer", "model") for phase in ("decode", "prefill")}
    for what, quantized in (("layer", list(BLOCKS)), ("model", ["int4"])):
        without = [REFERENCE, *map(dense, quantized), TORCH]
        precisions = ["float32", "bfloat16", *quantized]
        shares = [None, 0.5, 0.25]
        expected = [ours(share, of) for of in precisions for share in shares]
        if what == "model":
            drawn = [ours(0.25, of, sampled=True) for of in precisions]
            expected = [name for n, one in enumerate(drawn) for name in [*expected[3 * n : 3 * n + 3], one]]
        assert names[what, "decode"] == without + expected
        assert names[what, "prefill"] == without + [ours(None, of) for of in precisions]
    assert report[1]["settings"] | {"active": [0.5, 0.25], "rounds": 3, "threads": 1} == report[1]["settings"]
    assert report[1]["machine"]["versions"]["onnxruntime"]


def test_ratios_are_quotients_of_the_figures(report):
    for table in report[1]["tables"]:
        samples = {row["name"]: np.array(row["samples_ms"]) for row in table["rows"]}
        quantized = [dense(precision) for precision in BLOCKS if dense(precision) in samples]
        for row in table["rows"]:
            assert bool(row["missing"]) == (row["ms"] is None)
            if row["missing"]:
                continue
            times = np.array(row["samples_ms"])
            assert row["ms"] == pytest.approx(np.median(times))
            assert row["ratio"] == pytest.approx(np.median(samples[REFERENCE] / times))
            assert row["against"] == pytest.approx({name: np.median(samples[name] / times) for name in quantized})
            if table["phase"] == "prefill":
                assert row["floor_share"] is None
                continue
            floor_ms = row["bytes_read"] / np.array(row["bandwidth_gigabytes_per_second"]) / 1e6
            assert row["floor_share"] == pytest.approx(np.median(floor_ms / times))
            assert row["gigabytes_per_second"] == pytest.approx(row["bytes_read"] / row["ms"] / 1e6)


def test_only_chosen_weights_are_compared(capsys):
    """Those, and the dense graph in float32."""
    options = ["--shape", "tiny", "--what", "layer", "--active", "0.5", "--rounds", "1", "--weights", "int8"]
    assert clada_main(["bench", *options, "--threads", "1"]) == 0
    decode = capsys.readouterr().out.split("\n\n")[1].splitlines()
    names = [line.split("  ")[0] for line in decode[2:-1]]
    assert names == [REFERENCE, dense("int8"), ours(None, "int8"), ours(0.5, "int8")]
    assert "vs int8" in decode[1]


def test_what_sampling_takes_is_told():
    """Table lines give the median of the rounds' own quotients."""
    rows = (
        Row(ours(0.4, "int4"), ms=2.0, samples_ms=(1.0, 2.0, 4.0)),
        Row(ours(0.4, "int4", sampled=True), ms=2.5, samples_ms=(1.5, 2.2, 8.0)),
        Row(ours(0.6, "int4", sampled=True), missing="it did not fit"),
    )
    lines = [line for line in table_lines(Table("tiny", "model", "decode", 1, 64, rows)) if "greedy" in line]
    assert lines == ["ours 40% sampled int4: 1.50x the time of ours 40% int4, which is greedy"]


def test_targets_of_a_whole_model_are_of_speed_memory_and_loading():
    rows = (Row(GENAI, ratio=1.0), Row(ours(0.4, "int4"), ratio=1.2))
    table = Table("llama-3.2-1b", "genai", "decode", 1, 64, rows)
    theirs = Footprint("llama-3.2-1b", GENAI, 1.0, (1.0,), 9e8, 1e8, 8 * 10**8)
    own = Footprint("llama-3.2-1b", ours(0.4, "int4"), 1.4, (1.4,), 1.2e9, 1e8, 10**9)
    found = targets([table], [theirs, own])
    assert [(target.reached, target.met) for target in found] == [(1.2, False), (1.2, False), (1.4, True)]
    assert target_lines(found)[2].endswith("1.40x, to be at most 1.50x: met")
    assert not targets([], [theirs])


def test_the_fastest_of_those_no_worse_is_compared():
    """Against each GGUF file, by the rounds' own ratios; that none of ours is as near to the checkpoint is said."""
    times = {"llama.cpp a": (4.0, 6.0, 5.0), "llama.cpp b": (1.0, 1.0, 1.0)}
    times |= {
        ours(None, "int4"): (3.0, 3.0, 2.5),
        ours(0.7, "int4"): (2.0, 3.0, 2.0),
        ours(0.5, "int4"): (1.0, 1.0, 1.0),
    }
    times |= {dense("int4"): (0.5, 0.5, 0.5)}
    kl = dict(zip(times, (0.02, 0.001, 0.01, 0.02, 0.03, 0.01), strict=True))
    rows = tuple(Row(name, ms=float(np.median(ms)), samples_ms=ms) for name, ms in times.items())
    qualities = Qualities(tuple(Quality(name, Estimate(value, 0, 1), Estimate(0, 0, 1)) for name, value in kl.items()))
    tables = [Table("tiny", "artifact", "decode", 1, 64, rows), Table("tiny", "artifact", "prefill", 512, 0, rows)]
    assert equal_quality_lines(tables, qualities) == [
        "after 64 tokens, at no more KL than llama.cpp a (0.0200): ours 70% int4 (0.0200) is 2.00x as fast",
        "after 64 tokens, at no more KL than llama.cpp b (0.0010): none of ours",
    ]
    assert equal_quality_lines(tables, Qualities(())) == []


def test_targets_are_those_of_a_measured_layer():
    """Each with its own contender's ratio; a table of another shape or phase has none."""
    against = {dense("int4"): 1.5, dense("int4-block128"): 1.2, dense("int8"): 1.7}
    rows = tuple(Row(ours(fraction, "int4"), against=against) for fraction in (None, 0.6))
    tables = [
        Table("llama-3-8b", "layer", "decode", 1, 0, rows),
        Table("llama-3-8b", "layer", "prefill", 512, 0, rows),
        Table("tiny", "layer", "decode", 1, 0, rows),
    ]
    found = targets(tables)
    assert [(target.reached, target.met) for target in found] == [
        (1.5, True),
        (1.5, True),
        (1.2, True),
        (None, False),
        (None, False),
        (None, False),
    ]
    lines = target_lines(found)
    assert lines[1] == "llama-3-8b layer, ours 60% int4 against ORT dense int4: 1.50x, to be at least 1.35x: met"
    assert lines[3].endswith("not measured, to be at least 1.70x: NOT MET")
    slow = Row(ours(None, "int4"), against=against | {dense("int4"): 0.99})
    assert not targets([Table("llama-3.2-1b", "layer", "decode", 1, 0, (slow,))])[0].met


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
        (["--weights", "int4", "int4"], "a precision of weights is given twice"),
        (["--rounds", "0"], "rounds is 0"),
        (["--threads", "-1"], "threads is -1"),
        (["--json", "/nowhere/out.json"], "cannot write /nowhere/out.json: No such file"),
        (["--json", "/"], "cannot write /: it is a folder"),
        (["--plot", "out.gif"], "cannot plot to out.gif: its suffix must be one of .png, .svg"),
    ],
)
def test_bad_input_is_refused_before_measuring(capsys, monkeypatch, options, message):
    monkeypatch.setattr("clada.benchmark.run._MEASURES", {})
    shape = [] if "--shape" in options else ["--shape", "tiny"]
    fails_with(capsys, clada_main, ["bench", *shape, *options], message)


@pytest.mark.parametrize("bits", [None, 4])
def test_an_artifact_is_timed_beside_the_dense_graph_of_its_weights(bits, inputs_artifact, tmp_path, capsys):
    path = inputs_artifact
    if bits is not None:
        path = tmp_path / "int4" / "model.onnx"
        config = ExportConfig(CalibrationConfig(bytes=0.6), calibration_tokens=600, quantize="int4")
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96}
        source = write_checkpoint(tmp_path / "hf", "llama", **sizes)
        export(path, str(source), config, lambda _: None)
    before = sorted(path.parent.iterdir())
    options = ["--bytes", "1", "0.7", "--rounds", "3", "--threads", "1", "--context", "20"]
    assert clada_main(["bench", str(path), *options, "--json", str(tmp_path / "out.json")]) == 0
    assert sorted(path.parent.iterdir()) == before
    table, prefill = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert (prefill["phase"], prefill["tokens"]) == ("prefill", 127)
    theirs, all_bytes, fewer = table["rows"]
    precision = "float32" if bits is None else "int4"
    assert [row["name"] for row in table["rows"]] == [dense(precision), ours(None, precision), ours(0.7, precision)]
    assert f"vs {dense(precision)}" in capsys.readouterr().out
    # What was read of the text, and of how many bytes.
    assert theirs["active"] == 1
    assert all_bytes["active"] == pytest.approx(1, abs=1e-6)
    assert 0.4 < fewer["active"] < 0.9
    weights = sum(p.inputs * p.outputs for p in open_artifact(path).manifest.inputs.products)
    assert all_bytes["bytes_read"] == pytest.approx(weights * (4 if bits is None else 0.5 + 2 / 32))
    assert all_bytes["ratio"] == pytest.approx(
        np.median(np.array(theirs["samples_ms"]) / np.array(all_bytes["samples_ms"]))
    )
    # The prompt's logits, which the dense graph computes by itself.
    assert all_bytes["error"] < (1e-4 if bits is None else 0.5)


def test_the_dense_graph_has_nothing_of_ours(inputs_artifact):
    """Not what skips nothing either, else ONNX Runtime would be timed with our kernels."""
    with dense_copy(inputs_artifact.with_name(in_place_name(inputs_artifact)), None) as path:
        graph = onnx.load(path, load_external_data=False)
    assert DOMAIN not in {node.domain for node in graph.graph.node}
    assert not graph.functions
    assert "GroupQueryAttention" in {node.op_type for node in graph.graph.node}


def test_weights_that_another_benchmark_has_linked_are_refused(inputs_artifact):
    """Where they are read: a second name of their file might lead out of the folder."""
    graph = inputs_artifact.with_name(in_place_name(inputs_artifact))
    refused = pytest.raises(CladaError, match=r"model\.onnx\.data has another name besides \(a hard link\)")
    with dense_copy(graph, None), refused, dense_copy(graph, BLOCKS["int4"]):
        pass


def test_divergence_is_that_of_an_evaluation(inputs_artifact, checkpoint, tmp_path, capsys):
    """Of each contender, over the rows that `clada eval` draws: what it says of the same artifact."""
    source, report, image = str(checkpoint("llama")), tmp_path / "out.json", tmp_path / "out.svg"
    quality = ["--reference", source, "--data", str(HELDOUT), "--plot", str(image)]
    timing = ["--bytes", "1", "0.6", "--rounds", "2", "--threads", "1", "--context", "8", "20", "--json", str(report)]
    assert clada_main(["bench", str(inputs_artifact), *timing, *quality]) == 0
    found = json.loads(report.read_text())
    assert [(table["phase"], table["context"]) for table in found["tables"]] == [
        ("decode", 8),
        ("decode", 20),
        ("prefill", 0),
    ]
    dense_kl, all_bytes, fewer = found["qualities"]
    names = [dense("float32"), ours(None, "float32"), ours(0.6, "float32")]
    assert [row["name"] for row in found["qualities"]] == names
    assert abs(dense_kl["kl"]["value"]) < 1e-6
    assert abs(all_bytes["kl"]["value"]) < 1e-6
    settings = EvaluationSettings(8, 64, 63, 1)
    evaluation = evaluate_artifact(inputs_artifact, source, HELDOUT, settings, threads=1, bytes=0.6)
    for metric in ("kl", "disagreement"):
        assert fewer[metric]["value"] == pytest.approx(evaluation.metrics[metric].value, rel=1e-5)
    assert fewer["kl"]["low"] < fewer["kl"]["value"] < fewer["kl"]["high"]
    assert "next token differs" in capsys.readouterr().out
    drawn = image.read_text()
    assert all(f"<!-- {system} -->" in drawn for system in ("ORT float32", "ours float32"))


@pytest.mark.parametrize("missing", ["--reference", "--data"])
def test_a_checkpoint_and_text_are_given_together(inputs_artifact, capsys, missing):
    given = {"--reference": "models/demo", "--data": HELDOUT}
    del given[missing]
    fails_with(capsys, clada_main, ["bench", inputs_artifact, *given.popitem()], "are given together")


def test_one_of_the_same_dense_graphs_is_measured():
    """Float32 and bfloat16 files of a model have one in common."""
    one, other, third = (SimpleNamespace(dense_name=dense(name)) for name in ("float32", "float32", "int4"))
    assert [has_dense(artifact, [one, other, third]) for artifact in (one, other, third)] == [True, False, True]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantized", FORMATS)
def test_each_way_to_quantize_has_a_bound(quantized, method):
    precision = precision_of(SimpleNamespace(quantization=SimpleNamespace(bits=FORMATS[quantized], method=method)))
    logits = np.float32([1, 2])
    assert checked_error(ours(0.5, precision), logits, logits) == 0


def test_artifacts_that_cannot_be_told_apart_are_refused(inputs_artifact, capsys):
    fails_with(capsys, clada_main, ["bench", inputs_artifact, inputs_artifact], "are both float32: time one of them")


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed")
def test_llama_cpp_is_asked_for_before_anything_is_measured(inputs_artifact, capsys):
    message = "llama-cpp-python is not installed; install it: pip install llama-cpp-python"
    fails_with(capsys, clada_main, ["bench", inputs_artifact, "--gguf", "model.gguf"], message)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_predicts_what_the_checkpoint_does(tmp_path):
    """In one batch and token by token, and again after going back; its own rounding to 8 bits apart."""
    # Whole blocks of 32 weights.
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = random_model("qwen2", hidden_size=64, intermediate_size=96, num_hidden_layers=2, **heads)
    file = tmp_path / "tiny.gguf"
    model.load_state_dict(write_gguf(file, model))
    ids = np.random.default_rng(0).integers(2, model.config.vocab_size, 24).tolist()
    expected = dense_logits(model, ids)
    with LlamaProcess(file, 1, 64) as process:
        assert process.vocabulary == model.config.vocab_size
        near = {"rtol": 0, "atol": 0.03 * np.ptp(expected)}
        np.testing.assert_allclose(process.prefill(ids[:10]), expected[9], **near)
        np.testing.assert_allclose(process.score(ids[:10], ids[10:]), expected[10:], **near)
        process.decode(12, ids[12:14])
        assert process.read == ids[:14]


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_gguf_files_are_looked_for_before_anything_is_loaded(tmp_path, capsys):
    fails_with(capsys, clada_main, ["bench", "absent.onnx", "--gguf", tmp_path / "none.gguf"], "there is no GGUF file")
    files = [tmp_path / folder / "same.gguf" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    fails_with(capsys, clada_main, ["bench", "absent.onnx", "--gguf", *files], "have the same name")


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all" * 100])
def test_what_llama_cpp_cannot_load_is_told(tmp_path, content):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(CladaError, match=r"llama\.cpp cannot load .*broken\.gguf: is it a GGUF file"):
        LlamaProcess(file, 1, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bytes", "0.01"], "bytes is 0.01; the artifact was calibrated for"),
        (["--bytes", "1.5"], "bytes is 1.5"),
        (["--context", "0"], "the context is 0; it must be from 1 to 119"),
        (["--context", "120"], "the context is 120"),
        (["--prompt-file", "/nowhere"], "/nowhere"),
    ],
)
def test_what_an_artifact_cannot_be_timed_at_is_told(inputs_artifact, capsys, options, message):
    fails_with(capsys, clada_main, ["bench", inputs_artifact, *options], message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{path}", "--shape", "tiny"], "--shape is of random weights, and {path} is given: leave one of them out"),
        (["{path}", "--what", "layer"], "--what is of random weights"),
        (["{path}", "--active", "0.5"], "--active is of random weights"),
        (["{path}", "--weights", "int4"], "--weights is of random weights"),
        (["--shape", "tiny", "--bytes", "0.5"], "--bytes is of an artifact, and none is given"),
        (["--context", "64"], "--context is of an artifact"),
        (["--prompt-file", "text"], "--prompt-file is of an artifact"),
    ],
)
def test_options_of_the_other_kind_are_refused(inputs_artifact, capsys, options, message):
    words = [option.format(path=inputs_artifact) for option in options]
    fails_with(capsys, clada_main, ["bench", *words], message.format(path=inputs_artifact))


def test_an_artifact_that_skips_neurons_is_not_timed(tiny_artifact, capsys):
    fails_with(capsys, clada_main, ["bench", tiny_artifact, "--bytes", "1"], "skips neurons")


def test_without_kernels_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setitem(library._NAMES, "cpu", "absent")
    fails_with(capsys, clada_main, ["bench", "--shape", "tiny"], "has no native kernels (libabsent.so)")
