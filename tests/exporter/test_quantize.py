"""Quantized exports: their rounding, the content of their graphs, and their results in a session."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from clada.contract.artifact import open_artifact
from clada.contract.typed_json import plain
from clada.errors import CladaError
from clada.evaluation.exported import evaluate_artifact
from clada.evaluation.report_data import read_groups
from clada.evaluation.result import result_json
from clada.evaluation.session_subject import SessionSubject
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.torch_session import TorchSession
from clada.exporter.calibration.calibrate import calibrate
from clada.exporter.calibration.text import read_texts, row_length, sample_file, token_rows
from clada.exporter.cli import main as export_main
from clada.exporter.export import ExportConfig, export
from clada.exporter.graph import trace as tracing
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.exporter.model.products import find_products
from clada.exporter.quantization.gptq import round_inward, round_outward
from clada.exporter.quantization.packed import read_packed
from clada.exporter.quantization.product_quantization import quantize_products
from clada.exporter.quantization.quantize import QuantizationConfig, hold, linear_modules, quantize_model
from clada.ops import QUANTIZED
from clada.ops.block_quantization import dequantize, quantize
from clada.runtime import GenerationConfig, Session
from clada.runtime.cli import main as clada_main
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel, session_options
from tests.conftest import DEMO_MODEL, HELDOUT
from tests.exporter.test_export import batch_dependence
from tests.exporter.test_trace import LOAD_MAP
from tests.project.test_bad_input import fails_with, snapshot
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model, write_checkpoint
from tests.support.demo_model import rows_for
from tests.support.exhaustive import exhaustive, few
from tests.support.manifests import read_manifest, write_manifest
from tests.support.thresholds import uniform

# By family: the sizes that blocks need, and the options of its export. Output matrices of llama and gpt_neox are their
# own, of qwen3 and opt the embedding's.
SIZES = {
    "llama": {"hidden_size": 64, "num_attention_heads": 4},
    "qwen3": {"hidden_size": 64, "num_attention_heads": 4},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "num_attention_heads": 4},
    "gpt_neox": {"hidden_size": 128, "num_attention_heads": 4},
}
OPTIONS = {
    "llama": {"quantize": "int4"},
    "qwen3": {"quantize": "int8", "quantize_method": "gptq", "dtype": "float16"},
    "opt": {"quantize": "int4", "quantize_method": "gptq", "opset": 23},
    "gpt_neox": {"quantize": "int8", "block_size": 128},
}
FAMILIES = pytest.mark.parametrize("family", few(OPTIONS, ["opt"]))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function from a family to the folder of a tiny checkpoint whose widths blocks divide."""
    made = {}

    def folder(family: str):
        if family not in made:
            made[family] = write_checkpoint(tmp_path_factory.mktemp(f"hf-{family}"), family, **SIZES[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def artifacts(checkpoints, tmp_path_factory):
    """A function from a family to the ONNX file of its artifact, made with its OPTIONS."""
    made = {}

    def path(family: str):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model.onnx"
            config = ExportConfig(HALF_OF_NEURONS, calibration_tokens=600, **OPTIONS[family])
            export(made[family], str(checkpoints(family)), config, lambda _: None)
        return made[family]

    return path


def bits_of(family: str) -> int:
    return int(OPTIONS[family]["quantize"].removeprefix("int"))


def block_of(family: str) -> int:
    return OPTIONS[family].get("block_size", 32)


@FAMILIES
def test_artifact_holds_packed_weights(artifacts, checkpoints, family):
    path, bits, block, width = artifacts(family), bits_of(family), block_of(family), SIZES[family]["hidden_size"]
    manifest = open_artifact(path).manifest
    section = plain(manifest.quantization)
    method = OPTIONS[family].get("quantize_method", "rtn")
    assert (section["bits"], section["block_size"], section["method"]) == (bits, block, method)
    gated = family in ("llama", "qwen3")
    assert section["feed_forward"] == (["w_gate", "w_up", "w_down"] if gated else ["w_in", "w_out"])
    assert sorted(manifest.ops) == ["LoadSignal", "QuantizedSparseGatedFFN" if gated else "QuantizedSparseFFN"]
    assert manifest.model.opset == OPTIONS[family].get("opset", 21)
    model, _ = load_model(str(checkpoints(family)), torch.float32)
    assert manifest.model.parameters == model.num_parameters()

    embedding = model.get_input_embeddings().weight.detach().clone()
    sparsify(model)
    paths = list(linear_modules(model))
    assert section["linears"] == paths
    assert len(paths) == {"gpt_neox": 2}.get(family, 4) * LAYERS + 1
    float_weights = {name: module.weight.detach().clone() for name, module in linear_modules(model).items()}
    packed = read_packed(path)
    if method == "rtn":
        expected = quantize_model(model, torch.zeros(1, 2, dtype=torch.int64), QuantizationConfig(bits, block))
        for ours, theirs in zip(expected.layers, packed.layers, strict=True):
            assert all(torch.equal(ours[n].codes, theirs[n].codes) for n in ours)
            assert all(torch.equal(ours[n].scales, theirs[n].scales) for n in ours)
        for name, ours in expected.linears.items():
            assert torch.equal(ours.values(), packed.linears[name].values())
    else:
        hold(model, packed)
    for name, module in linear_modules(model).items():
        error = (module.weight - float_weights[name]).norm() / float_weights[name].norm()
        assert 0 < error < (0.2 if bits == 4 else 0.015), name
    # The embedding is in 16 bits, although the output matrix was it.
    assert torch.equal(model.get_input_embeddings().weight, embedding.half().float())
    assert not torch.equal(model.get_output_embeddings().weight, embedding)

    # Each weight is there once, packed, for both graphs.
    matrices = (3 if gated else 2) * LAYERS * NEURONS * width
    others = sum(weight.numel() for weight in float_weights.values())
    size_of = {"float32": 4, "float16": 2}[manifest.model.dtype]
    packed_bytes = (matrices + others) * bits / 8 + matrices / block * 2 + others / block * size_of
    rest = 48_000 + (130 * width * 4 if family == "opt" else 0)  # norms, biases, what is calibrated; positions
    data = path.with_name("model.onnx.data").stat().st_size
    assert data <= packed_bytes + VOCABULARY * width * 2 + rest
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}
    codes = [kinds[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear"]
    # Queries, keys and values of a layer are one product.
    assert codes == [f"INT{bits}"] * (2 * LAYERS + 1)


@FAMILIES
def test_session_runs_alone_and_in_a_batch(artifacts, checkpoints, family, capsys):
    path = artifacts(family)
    session = Session(path, threads=1)
    config = GenerationConfig(max_new_tokens=6)
    batch = session.generate(["def f(x):", "import"], config)
    alone = session.generate("import", config)[0]
    assert [len(completion.stats) for completion in batch] == [6, 6]
    assert batch_dependence(session, ["def f(x):", "import"]) < 5e-2
    for token in alone.stats:
        assert 0 < token.active_fraction < 1
        assert token.active_fraction <= token.read_fraction + 1e-6 <= 1 + 1e-6
        assert len(token.active) == LAYERS
    assert clada_main(["verify", str(path), "--model", str(checkpoints(family))]) == 0
    assert clada_main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out
    assert f"quantized: int{bits_of(family)}, a scale for each {block_of(family)} weights" in out


def optimized(path, out, execution):
    """The graph that ONNX Runtime runs, as it writes it."""
    options = session_options(execution)
    options.optimized_model_filepath, options.log_severity_level = str(out), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(out, load_external_data=False).graph


@FAMILIES
@pytest.mark.parametrize("in_place", [False, True], ids=["portable", "in-place"])
def test_onnxruntime_multiplies_with_packed_weights(artifacts, tmp_path, family, in_place):
    """Each of the other products becomes its own kernel's, computed in int8 but for verification."""
    artifact = open_artifact(artifacts(family))
    path = artifact.in_place_model if in_place else artifact.model
    for exact in (False, True):
        graph = optimized(path, tmp_path / "optimized.onnx", Execution(threads=1, exact=exact))
        products = [node for node in graph.node if node.op_type == "MatMulNBits"]
        attributes = [{a.name: a.i for a in node.attribute} for node in products]
        assert len(products) == 2 * LAYERS + 1
        assert {a["bits"] for a in attributes} == {bits_of(family)}
        assert {a["block_size"] for a in attributes} == {block_of(family)}
        assert {a["accuracy_level"] for a in attributes} == {0 if exact else 4}
        assert not any(node.op_type == "DequantizeLinear" for node in graph.node)


PROGRAM = """
import sys
from pathlib import Path
from clada.runtime.models.ort_cpu import Execution, create_session

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

before = resident()
session = create_session(Path(sys.argv[1]), Execution(threads=1, kernels="bodies"))
print(resident() - before)
"""


def test_loaded_weights_take_little_more_than_the_file(tmp_path):
    """Neither in floating point nor twice: ONNX Runtime packs them anew, with sums and a copy of the scales."""
    count, width = 48, 1536
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    for n in range(count):
        codes = rng.integers(0, 256, width * width // 2, dtype=np.uint8).tobytes()
        scales = rng.random((width // 32, width), dtype=np.float32)
        tensors.append(onnx.helper.make_tensor(f"w{n}", onnx.TensorProto.INT4, (width, width), codes, raw=True))
        tensors.append(onnx.numpy_helper.from_array(scales, f"s{n}"))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"w{n}", f"s{n}"], [f"d{n}"], axis=0, block_size=32))
        nodes.append(onnx.helper.make_node("MatMul", [f"x{n}", f"d{n}"], [f"x{n + 1}"]))
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["tokens", width])
        for name in ("x0", f"x{count}")
    ]
    graph = onnx.helper.make_graph(nodes, "products", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
    printed = subprocess.run([sys.executable, "-c", PROGRAM, path], check=True, capture_output=True, text=True).stdout
    assert int(printed) < 1.6 * path.with_name("model.onnx.data").stat().st_size


def test_verification_computes_in_floating_point_and_a_session_does_not(artifacts):
    """Tokens rounded to 8 bits move logits by far more than rounding to float32 does, and little enough."""
    path = artifacts("llama")
    prompt = [[1, 5, 9, 30, 200, 7, 8]]
    fast = Session(path, threads=1).prefill(prompt).logits
    model = OnnxRuntimeModel(path, Execution(threads=1, exact=True))
    exact = Session(path, threads=1)
    exact.models.take("single", model)
    difference = np.abs(fast - exact.prefill(prompt).logits).max() / np.ptp(fast)
    assert 1e-5 < difference < 5e-2


def test_calibration_is_of_the_quantized_model(artifacts, checkpoints):
    """Thresholds are those that the model with quantized weights gets, and the other has others."""
    found = {}
    for quantized in (True, False):
        model, tokenizer = load_model(str(checkpoints("llama")), torch.float32)
        texts = read_texts(sample_file())
        length = row_length(model.config.max_position_embeddings)
        rows = token_rows(texts, tokenizer, vocabulary=VOCABULARY, tokens=600, length=length, seed=0)
        sparsify(model)
        if quantized:
            quantize_model(model, rows, QuantizationConfig(), lambda _: None)
        found[quantized] = calibrate(model, rows, HALF_OF_NEURONS).calibrated.thresholds
    exported_ones = Calibrated.from_graph(artifacts("llama")).thresholds
    for exported, ours, other in zip(exported_ones, found[True], found[False], strict=True):
        torch.testing.assert_close(exported, ours)
        assert not torch.allclose(exported, other, rtol=1e-2)


def test_tracing_leaves_the_model_as_it_was(checkpoints):
    """Verification computes with the values that packed weights stand for."""
    model, _ = load_model(str(checkpoints("opt")), torch.float32)
    sparsify(model)
    packed = quantize_model(model, torch.zeros(1, 2, dtype=torch.int64), QuantizationConfig(4, 32))
    before, ids = [id(module) for module in model.modules()], torch.arange(12)[None]
    expected = model(input_ids=ids).logits
    traced = tracing.trace(model, Calibrated(uniform(model, 0.1), load_map=LOAD_MAP), opset=21, quantized=packed)
    assert [id(module) for module in model.modules()] == before
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert all(layer.op.name not in {op.name for op in QUANTIZED.values()} for layer in sparse_layers(model))
    assert any(node.op_type == "QuantizedSparseFFN" for node in traced.graph)


def correlated(tokens: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, width // 4, generator=generator) @ torch.randn(width // 4, width, generator=generator)
    return mixed + 0.1 * torch.randn(tokens, width, generator=generator)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 32), (4, 128)])
@pytest.mark.parametrize("outward", [False, True], ids=["inward", "outward"])
def test_gptq_keeps_outputs_nearer_than_rounding_does(bits, block, outward):
    inputs = correlated(400, 256, seed=bits)
    weights = torch.randn(256, 128, generator=torch.Generator().manual_seed(1))  # inputs by outputs
    matrix = weights if outward else weights.T.contiguous()
    moments = inputs.T @ inputs

    def error(codes, scales):
        values = torch.from_numpy(dequantize(np.asarray(codes), np.asarray(scales).astype(np.float32), bits))
        return float((inputs @ (values if outward else values.T) - inputs @ weights).norm())

    nearest = error(*quantize(matrix.numpy(), bits, block))
    rounding = round_outward if outward else round_inward
    codes, scales = rounding(matrix, moments, bits, block)
    assert codes.shape == (len(matrix), matrix.shape[1] * bits // 8)
    assert scales.shape == (len(matrix), matrix.shape[1] // block)
    assert error(codes, scales) < 0.7 * nearest
    again = rounding(matrix, moments, bits, block)
    assert torch.equal(codes, again[0])
    assert torch.equal(scales, again[1])
    # Nothing to make up for where inputs have nothing to do with each other.
    alone, _ = rounding(matrix, torch.eye(256), bits, block)
    expected, _ = quantize(matrix.numpy(), bits, block, positive=bits == 8)
    assert torch.equal(alone, torch.from_numpy(expected))


def test_gptq_takes_inputs_that_never_occur():
    moments = torch.zeros(64, 64)
    codes, _ = round_inward(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), moments, 4, 32)
    assert codes.any()


@torch.no_grad()
def log_probabilities(model, rows):
    return torch.log_softmax(model(input_ids=rows).logits, dim=-1)


@pytest.mark.parametrize("skips", ["neurons", "inputs"])
def test_gptq_loses_less_than_half_of_what_rounding_does(skips):
    """On the demo model with 4 bits, and text that it was not calibrated on: nats per token."""
    model, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    halves = [rows_for(tokenizer, 1024, 128, texts=slice(start, None, 2)) for start in (0, 1)]
    dense = log_probabilities(model, halves[1])
    divergence = {}
    for method in ("rtn", "gptq"):
        quantized, _ = load_model(str(DEMO_MODEL), torch.float32)
        config = QuantizationConfig(4, 32, method)
        if skips == "neurons":
            sparsify(quantized)
            quantize_model(quantized, halves[0], config, lambda _: None)
        else:
            rows = halves[0] if config.follows_text else None
            quantize_products(quantized, find_products(quantized), config, rows, lambda _: None)
        given = log_probabilities(quantized, halves[1])
        divergence[method] = float((dense.exp() * (dense - given)).sum(-1).mean())
    assert 0.03 < divergence["rtn"] < 0.3
    assert divergence["gptq"] < 0.5 * divergence["rtn"]


@pytest.fixture(scope="module")
def demo_evaluation(tmp_path_factory):
    """The demo model with 4 bits, evaluated."""
    path = tmp_path_factory.mktemp("demo") / "model.onnx"
    config = ExportConfig(HALF_OF_NEURONS, calibration_tokens=512, quantize="int4", quantize_method="gptq")
    export(path, str(DEMO_MODEL), config, lambda _: None)
    return evaluate_artifact(path, str(DEMO_MODEL), HELDOUT, EvaluationSettings(2, 40, 48, 2), threads=1)


@exhaustive
def test_evaluation_tells_quantization_and_sparsity_apart(demo_evaluation, tmp_path):
    whole, (dense, sparse) = demo_evaluation, demo_evaluation.parts
    assert [e.subject.name for e in (whole, dense, sparse)] == ["clada, int4", "dense, int4", "clada"]
    value = {e.subject.name: {n: m.value for n, m in e.metrics.items()} for e in (whole, dense, sparse)}
    assert value["dense, int4"]["read_fraction"] == 1
    assert value["dense, int4"]["sparsity"] == 0
    assert value["clada"]["sparsity"] == pytest.approx(value["clada, int4"]["sparsity"], abs=0.02)
    weights = 3 * 6 * 704 * 256
    assert (dense.subject.ffn_bytes, sparse.subject.ffn_bytes) == (weights * 9 // 16, weights * 4)
    # Each costs something, both cost more than either, and all are measured against one dense model.
    costs = [value[name]["kl"] for name in ("clada", "dense, int4", "clada, int4")]
    assert 1e-4 < costs[0] < costs[2] < 0.3
    assert costs[1] < costs[2] < 2 * (costs[0] + costs[1])
    assert len({v["dense_perplexity"] for v in value.values()}) == 1

    (tmp_path / "result.json").write_bytes(result_json(whole))
    (group,) = read_groups([tmp_path / "result.json"])
    assert [result.policy for result in group.results] == ["clada", "clada, int4", "dense, int4"]
    # The artifact alone has tasks.
    assert ["choice_accuracy" in result.metrics for result in group.results] == [False, True, False]


def test_command_and_report_show_the_parts(artifacts, checkpoints, tmp_path, capsys):
    result, page = tmp_path / "result.json", tmp_path / "page.html"
    options = ["--reference", checkpoints("llama"), "--data", HELDOUT, "--json", result, "--threads", 1]
    sizes = ["--sequences", 2, "--prompt-tokens", 16, "--decode-tokens", 16, "--generation-tokens", 2]
    assert clada_main([str(arg) for arg in ["eval", artifacts("llama"), *options, *sizes]]) == 0
    table = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert re.split(r"\s{2,}", table[0].strip()) == ["dense, int4", "clada", "clada, int4"]
    rows = {line.split()[0]: [float("nan" if cell == "-" else cell) for cell in line.split()[1:]] for line in table[1:]}
    found = json.loads(result.read_text())
    for metric in ("kl", "ffn_bytes"):
        written = [part["metrics"][metric]["value"] for part in (*found["parts"], found)]
        assert rows[metric] == pytest.approx(written, rel=1e-5)
    assert [part["subject"]["quantization"] is None for part in (*found["parts"], found)] == [False, True, False]
    assert clada_main(["report", str(page), "--results", str(result)]) == 0
    assert all(f"<td>{name}" in page.read_text() for name in ("dense, int4", "clada, int4", "clada<"))


def test_sparsity_with_the_checkpoints_weights_is_what_a_session_runs(tiny_artifact, checkpoint):
    """With weights that are not quantized PyTorch and ONNX Runtime agree, pools and telemetry included."""
    row = list(range(40, 90))
    expected = SessionSubject(Session(tiny_artifact, threads=1)).read(row, 20)
    model, _ = load_model(str(checkpoint("llama")), torch.float32)
    given = SessionSubject(TorchSession(tiny_artifact, model)).read(row, 20)
    np.testing.assert_allclose(given.logits, expected.logits, atol=1e-3)
    np.testing.assert_allclose(given.load, expected.load, atol=1e-2)
    np.testing.assert_array_equal(given.active, expected.active)
    np.testing.assert_array_equal(given.pool, expected.pool)


MISTAKES = {
    "opset": (["--quantize", "int4", "--opset", 20], "opset 20 knows no weights in blocks; with quantized weights"),
    "block without": (["--block-size", 128], "block_size is 128, and nothing is quantized"),
    "method without": (["--quantize-method", "gptq"], "quantize_method is gptq, and nothing is quantized"),
    "block does not divide": (
        ["--quantize", "int4", "--block-size", 128, "--ffn-cost", 0.5],
        "model.layers.0.self_attn.q_proj cannot be quantized: a block of 128 does not divide its input dimension, 64",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_options_are_one_line_and_write_nothing(checkpoints, tmp_path, capsys, mistake):
    options, message = mistake
    source = checkpoints("llama")
    capsys.readouterr()
    fails_with(capsys, export_main, [tmp_path / "out" / "model.onnx", "--model", source, *options], message)
    assert not snapshot(tmp_path)


def test_width_that_no_block_divides_names_the_matrix():
    model = random_model("opt", **SIZES["opt"])
    sparsify(model)
    layer = sparse_layers(model)[1]
    layer.w_out = torch.nn.Parameter(torch.ones(NEURONS, 80), requires_grad=False)
    with pytest.raises(
        CladaError, match="w_out of layer 1 cannot be quantized: a block of 32 does not divide its width, 80"
    ):
        quantize_model(model, torch.zeros(1, 2, dtype=torch.int64), QuantizationConfig())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "w_up of layer 1 cannot be quantized: it holds NaN or infinite weights"),
        (float("-inf"), "w_up of layer 1 cannot be quantized: it holds NaN or infinite weights"),
        (1e6, "w_up of layer 1 cannot be quantized: a weight of 1e\\+06 cannot be quantized to 4 bits"),
    ],
)
def test_weights_that_no_scale_fits_name_the_matrix(value, message):
    model = random_model("llama", **SIZES["llama"])
    sparsify(model)
    sparse_layers(model)[1].w_up[3, 5] = value
    with pytest.raises(CladaError, match=message):
        quantize_model(model, torch.zeros(1, 2, dtype=torch.int64), QuantizationConfig(4, 32))


def test_weights_of_zero_stay_zero():
    model = random_model("llama", **SIZES["llama"])
    sparsify(model)
    sparse_layers(model)[0].w_up[:] = 0
    packed = quantize_model(model, torch.zeros(1, 2, dtype=torch.int64), QuantizationConfig(4, 32))
    assert (packed.layers[0]["w_up"].scales > 0).all()
    assert not packed.layers[0]["w_up"].values().any()


@pytest.mark.parametrize("field", [{"bits": 3}, {"block_size": 64}, {"method": "awq"}])
def test_unknown_settings_are_refused(field):
    (name,) = field
    with pytest.raises(CladaError, match=f"{name} is {field[name]}; it must be one of"):
        QuantizationConfig(**field)
    with pytest.raises(CladaError, match="quantize is 'int3'; it must be one of int4, int8"):
        ExportConfig(quantize="int3")


def test_weights_that_are_quantized_are_not_rounded_to_bfloat16(artifacts, capsys):
    path = artifacts("llama")
    capsys.readouterr()
    message = f"weights=bfloat16 is for weights in float32, and those of {path} are quantized to 4 bits: leave it out"
    fails_with(capsys, clada_main, ["run", path, "--prompt", "x", "--weights", "bfloat16"], message)


def test_artifact_of_another_checkpoint_does_not_verify(artifacts, tmp_path, capsys):
    path = artifacts("llama")
    torch_seeded = write_checkpoint(tmp_path / "hf", "llama", **SIZES["llama"], initializer_range=0.02)
    capsys.readouterr()
    message = "of the artifact was not quantized from the checkpoint's: they are far apart"
    fails_with(capsys, clada_main, ["verify", path, "--model", torch_seeded], message)
    evaluate = ["eval", path, "--reference", torch_seeded, "--data", HELDOUT, "--json", tmp_path / "result.json"]
    sizes = ["--sequences", 2, "--prompt-tokens", 16, "--decode-tokens", 8, "--generation-tokens", 2]
    fails_with(capsys, clada_main, [*evaluate, *sizes], message)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 64}, r"quantization\.block_size is 64; this release of clada knows 32, 128"),
        ({"bits": 2}, r"quantization\.bits is 2; this release of clada knows 4, 8"),
        ({"method": "magic"}, r"quantization\.method is 'magic', and must be one of 'rtn', 'gptq'"),
        (None, "quantization does not go with the ops it names"),
    ],
)
def test_manifest_that_is_not_understood_is_refused(artifacts, tmp_path, change, message):
    shutil.copytree(artifacts("llama").parent, tmp_path, dirs_exist_ok=True)
    manifest = read_manifest(tmp_path)
    if change is None:
        del manifest["quantization"]
    else:
        manifest["quantization"] |= change
    write_manifest(tmp_path, manifest)
    with pytest.raises(CladaError, match=message):
        open_artifact(tmp_path / "model.onnx")


def test_matrix_of_other_sizes_is_not_held(artifacts):
    packed = read_packed(artifacts("llama"))
    fewer = dataclasses.replace(packed, linears=dict(list(packed.linears.items())[1:]))
    model = random_model("llama", **SIZES["llama"])
    sparsify(model)
    with pytest.raises(CladaError, match=r"the artifact has no quantized model\.layers\.0\.self_attn\.q_proj"):
        hold(model, fewer)
    # Not those of the artifact but by their sizes, of which the first matrix has others.
    other = random_model("llama", **SIZES["llama"], head_dim=32)
    sparsify(other)
    with pytest.raises(CladaError, match=r"q_proj is \[128, 64\] in the checkpoint, \[64, 64\] in the artifact"):
        hold(other, packed)
