"""The exported graph against the traced module, at sizes the tracer never saw."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from clada.exporter import trace as tracing
from clada.exporter.decoder import Decoder, LoadMap
from clada.exporter.families import FAMILIES
from clada.exporter.patch import sparsify
from clada.exporter.steps import constants, random_step
from clada.exporter.verify import read_constants
from clada.plugins import graph
from clada.plugins.errors import CladaError
from clada.plugins.ops import DOMAIN, LOAD_SIGNAL, PLUGIN_ATTRIBUTES
from tests.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model

LOAD_MAP = LoadMap(
    surprisal_knots=torch.linspace(2, 10, 9),
    entropy_knots=torch.linspace(3, 7, 9),
    scale_knots=torch.tensor([1.5, 1.0, 0.5]),
    reanalysis_load=torch.tensor(0.9),
    surprisal_weight=0.5,
)
# Every family at the default opset, one also at the ends of the range.
VARIANTS = [(family, tracing.DEFAULT_OPSET) for family in FAMILIES]
VARIANTS += [("llama", tracing.MINIMUM_OPSET), ("llama", tracing.MAXIMUM_OPSET), ("qwen3", tracing.MAXIMUM_OPSET)]
variants = pytest.mark.parametrize(("family", "opset"), VARIANTS)
# B, S, P: the past may be empty, and prefill may go on from one.
SIZES = [(2, 3, 5), (1, 1, 7), (3, 1, 7), (1, 7, 0), (3, 7, 0), (3, 1, 1), (1, 1, 0), (1, 7, 5)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a variant to the patched model, its state and the ONNX file."""

    @functools.cache
    def make(family: str, opset: int, all_logits: bool = False):
        model = random_model(family)
        generator = torch.Generator().manual_seed(3)
        sparsity = sparsify(model, [torch.rand(NEURONS, generator=generator) * 0.3 for _ in range(LAYERS)])
        path = tmp_path_factory.mktemp("trace") / "model.onnx"
        traced = tracing.trace(model, sparsity, LOAD_MAP, opset=opset, all_logits=all_logits)
        tracing.save(traced, path)
        return model, sparsity, path

    return make


def flat_inputs(step: dict) -> dict[str, np.ndarray]:
    tensors = [step["input_ids"], step["attention_mask"], step["position_ids"], step["past_logits"], *step["pools"]]
    tensors += [tensor for pair in step["past"] for tensor in pair]
    return {name: t.numpy() for name, t in zip(tracing.input_names(LAYERS), tensors, strict=True)}


def run_both(model, sparsity, path, step):
    """Outputs by name, of ONNX Runtime and of PyTorch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.run(None, flat_inputs(step))
    copy = {**step, "past": [tuple(t.clone() for t in pair) for pair in step["past"]]}
    with torch.no_grad():
        logits, present, score, *rest = Decoder(model, sparsity, LOAD_MAP.surprisal_weight)(
            **copy, **constants(sparsity, LOAD_MAP)
        )
    names = tracing.output_names(LAYERS)
    expected = [t.numpy() for t in (logits, *present, *score, *rest)]
    return dict(zip(names, given, strict=True)), dict(zip(names, expected, strict=True))


@variants
@pytest.mark.parametrize(("batch", "sequence", "past"), SIZES)
def test_graph_equals_module(exported, family, opset, batch, sequence, past):
    model, sparsity, path = exported(family, opset)
    step = random_step(model, batch, sequence, past, seed=100 * batch + 10 * sequence + past)
    if batch == 3 and past + sequence > 3:
        step["attention_mask"][1, :2] = 0
        step["attention_mask"][2, :3] = 0
    if sequence == 1:
        step["pools"][1][:, ::3] = False
    given, expected = run_both(model, sparsity, path, step)
    real = step["attention_mask"].numpy().astype(bool)
    for name, value in expected.items():
        out = given[name]
        assert out.shape == value.shape, name
        if name.startswith("present"):  # what padding holds is never read
            out, value = np.moveaxis(out, 2, 1)[real], np.moveaxis(value, 2, 1)[real]
        assert np.isfinite(out).all(), name
        np.testing.assert_allclose(out, value, atol=2e-4 * max(1.0, np.abs(value).max()), err_msg=name)
    np.testing.assert_array_equal(given[graph.ACTIVE], expected[graph.ACTIVE])


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_prefill_is_dense_and_decode_sparse(exported, family):
    model, sparsity, path = exported(family, tracing.DEFAULT_OPSET)
    active = {}
    for name, sizes in {
        "prompt": (1, 7, 0),
        "more prompt": (1, 7, 5),
        "one token": (1, 1, 0),
        "decode": (1, 1, 5),
    }.items():
        given, _ = run_both(model, sparsity, path, random_step(model, *sizes))
        active[name] = given[graph.ACTIVE].sum()
    # Dense drops only what is exactly zero: nothing for SiLU, about half for ReLU.
    dense = LAYERS * NEURONS if family == "llama" else 0.35 * LAYERS * NEURONS
    assert min(active["prompt"], active["more prompt"], active["one token"]) >= dense
    assert active["decode"] < 0.9 * min(active["prompt"], active["one token"])


def test_load_opens_the_pool(exported):
    """Past the reanalysis load a token may use every neuron, whatever its pool says."""
    model, sparsity, path = exported("llama", tracing.DEFAULT_OPSET)
    step = random_step(model, 2, 1, 5)
    step["pools"] = [torch.zeros_like(pool) for pool in step["pools"]]
    step["past_logits"] = torch.zeros(2, VOCABULARY)
    step["past_logits"][0, step["input_ids"][0]] = 50  # expected: no surprise, no entropy
    step["past_logits"][1, step["input_ids"][1]] = -50  # unexpected, and all else equally likely
    given, _ = run_both(model, sparsity, path, step)
    assert given[graph.LOAD][0] < 0.1
    assert given[graph.LOAD][1] >= 0.9
    assert given[graph.ACTIVE][:, 0].tolist() == [0] * LAYERS
    assert (given[graph.ACTIVE][:, 1] > 0).all()


def test_padding_does_not_change_a_prompt(exported):
    model, sparsity, path = exported("llama", tracing.DEFAULT_OPSET)
    alone = random_step(model, 1, 5, 0)
    padded = random_step(model, 1, 9, 0, seed=7)
    padded["input_ids"][:, 4:] = alone["input_ids"]
    padded["attention_mask"][:, :4] = 0
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp_min(0)
    one, _ = run_both(model, sparsity, path, alone)
    other, _ = run_both(model, sparsity, path, padded)
    for name in [graph.LOGITS, *(graph.score(n) for n in range(LAYERS))]:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=name)


@variants
def test_file_is_what_the_contract_says(exported, family, opset):
    _, sparsity, path = exported(family, opset)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    assert [value.name for value in session.get_inputs()] == tracing.input_names(LAYERS)
    assert [value.name for value in session.get_outputs()] == tracing.output_names(LAYERS)
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_logits"] == ["batch_size", VOCABULARY]
    assert shapes["pool.0"] == ["batch_size", NEURONS]
    assert shapes["past_key_values.2.key"][2] == "past_sequence_length"
    assert shapes["present.2.value"][2] == "total_sequence_length"
    assert shapes["logits"] == ["batch_size", 1, VOCABULARY]
    assert shapes["active"] == [LAYERS, "batch_size"]

    ours = [node for node in proto.graph.node if node.domain == DOMAIN]
    assert [n.op_type for n in ours].count(FAMILIES[family].op.name) == LAYERS
    assert [n.op_type for n in ours].count(LOAD_SIGNAL.name) == 1
    for node in ours:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert {k: attributes[k].decode() for k in PLUGIN_ATTRIBUTES} == PLUGIN_ATTRIBUTES
    assert {f.name for f in proto.functions if f.domain == DOMAIN} == {n.op_type for n in ours}

    thresholds, load_map = read_constants(path)
    for stored, wanted in zip(thresholds, sparsity.thresholds, strict=True):
        torch.testing.assert_close(stored, wanted, rtol=0, atol=0)
    torch.testing.assert_close(load_map.scale_knots, LOAD_MAP.scale_knots)


@variants
def test_weights_are_stored_once(exported, family, opset):
    model, _, path = exported(family, opset)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    stored = path.stat().st_size + path.with_name("model.onnx.data").stat().st_size
    proto = onnx.load(path, load_external_data=False)
    bookkeeping = sum(
        len(x.SerializeToString()) for x in [*proto.graph.node, *proto.graph.value_info, *proto.functions]
    )
    assert stored < weights + bookkeeping + 30_000


def test_file_holds_no_paths_of_this_machine(exported):
    _, _, path = exported("llama", tracing.DEFAULT_OPSET)
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(path.parent).encode() not in content
    assert b"stack_trace" not in content


def test_equal_thresholds_keep_their_names(tmp_path):
    """The exporter merges initializers of equal value; the calibrated ones must not go."""
    model = random_model("llama")
    sparsity = sparsify(model)
    tracing.save(tracing.trace(model, sparsity, LOAD_MAP), tmp_path / "model.onnx")
    names = {tensor.name for tensor in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer}
    assert set(tracing.constant_names(LAYERS)) <= names


def test_all_logits_on_request(exported):
    model, _, path = exported("llama", tracing.DEFAULT_OPSET, all_logits=True)
    step = random_step(model, 2, 7, 0)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run([graph.LOGITS], flat_inputs(step))[0]
    with torch.no_grad():
        expected = model(step["input_ids"]).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4 * np.abs(expected).max())


def test_tracing_leaves_the_model_as_it_was(exported):
    model, sparsity, _ = exported("llama", tracing.DEFAULT_OPSET)
    ids = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        assert model(ids).logits.shape == (1, 4, VOCABULARY)
    assert sparsity.scale == 0.0
    assert sparsity.pools is None


@pytest.mark.parametrize("opset", [17, 24])
def test_unsupported_opset_is_refused(opset):
    with pytest.raises(CladaError, match=f"opset {opset} is not supported; choose one from 18 to 23"):
        tracing.check_opset(opset)
