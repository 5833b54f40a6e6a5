"""The exported graph against the traced module, at sizes the tracer never saw."""

import copy
import dataclasses
import functools

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from clada.errors import CladaError
from clada.exporter.graph import trace as tracing
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import random_step
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.exporter.model.steering import Steering
from clada.ops import CACHED_ATTENTION, DOMAIN, LOAD_SIGNAL, PLUGIN_ATTRIBUTES, QUANTIZED_LINEAR, graph_names
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model
from tests.support.exhaustive import exhaustive, few
from tests.support.thresholds import uniform

LOAD_MAP = LoadMap(
    surprisal_knots=torch.linspace(2, 10, 9),
    entropy_knots=torch.linspace(3, 7, 9),
    scale_knots=torch.tensor([1.5, 1.0, 0.5]),
    reanalysis_load=torch.tensor(0.9),
    surprisal_weight=0.5,
)
# What is calibrated beside thresholds and the load's map; the middle layer of three anticipates.
PARTS = {
    "thresholds": (),
    "clada": ("compensation", "anticipation"),
    "everything": ("compensation", "anticipation", "token_scale"),
}
PROBED = 1
WIDTH = 48
# Every family at the default opset, one also at the ends of the range; everything on both ops.
VARIANTS = [(family, tracing.DEFAULT_OPSET, "thresholds") for family in FAMILIES]
VARIANTS += [(family, tracing.DEFAULT_OPSET, "everything") for family in ("llama", "opt")]
VARIANTS += [("llama", tracing.MINIMUM_OPSET, "clada"), ("llama", tracing.MAXIMUM_OPSET, "everything")]
VARIANTS += [("qwen3", tracing.MAXIMUM_OPSET, "clada")]
# Those that other tests here trace anyway.
USUAL = [("llama", tracing.DEFAULT_OPSET, "thresholds"), ("opt", tracing.DEFAULT_OPSET, "everything")]
USUAL += [("llama", tracing.MINIMUM_OPSET, "clada")]
variants = pytest.mark.parametrize(("family", "opset", "parts"), few(VARIANTS, USUAL))
# B, S, P: the past may be empty, and prefill may go on from one.
SIZES = [(2, 3, 5), (1, 1, 7), (3, 1, 7), (1, 7, 0), (3, 7, 0), (3, 1, 1), (1, 1, 0), (1, 7, 5)]


def with_parts(parts: str, largest: float = 0.3) -> Calibrated:
    """One of PARTS for a tiny model, with random values; thresholds are up to the largest."""
    generator = torch.Generator().manual_seed(3)
    thresholds = tuple(torch.rand(NEURONS, generator=generator) * largest for _ in range(LAYERS))
    calibrated = Calibrated(thresholds, load_map=LOAD_MAP)
    generator = torch.Generator().manual_seed(4)
    chosen = PARTS[parts]
    if "compensation" in chosen:
        added = tuple(torch.randn(WIDTH, generator=generator) * 0.3 for _ in range(LAYERS))
        calibrated = dataclasses.replace(calibrated, compensation=added)
    if "anticipation" in chosen:
        anticipation = Anticipation(
            site=PROBED,
            weight=torch.randn(WIDTH, generator=generator) / WIDTH**0.5,
            load_weight=torch.tensor(-0.7),
            bias=torch.tensor(0.2),
            knots=torch.linspace(-1, 1, 9),
            factors=torch.linspace(2.5, 0.4, 9),
        )
        calibrated = dataclasses.replace(calibrated, anticipations=(anticipation,))
    if "token_scale" not in chosen:
        return calibrated
    table = torch.rand(VOCABULARY, generator=generator) + 0.5
    table[0] = 0  # dense
    return dataclasses.replace(calibrated, load_map=dataclasses.replace(LOAD_MAP, token_scale=table))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a variant to the patched model, its calibrated values and the ONNX file."""

    @functools.cache
    def make(family: str, opset: int, parts: str, all_logits: bool):
        model = random_model(family)
        sparsify(model)
        calibrated = with_parts(parts)
        path = tmp_path_factory.mktemp("trace") / "model.onnx"
        tracing.save(tracing.trace(model, calibrated, opset=opset, all_logits=all_logits), path)
        return model, calibrated, path

    def variant(family: str, opset: int = tracing.DEFAULT_OPSET, parts: str = "thresholds", all_logits: bool = False):
        return make(family, opset, parts, all_logits)

    return variant


def flat_inputs(step: dict) -> dict[str, np.ndarray]:
    tensors = [step["input_ids"], step["attention_mask"], step["position_ids"], step["past_logits"], *step["pools"]]
    tensors += [tensor for pair in step["past"] for tensor in pair]
    return {name: t.numpy() for name, t in zip(tracing.input_names(LAYERS), tensors, strict=True)}


def run_both(model, calibrated, path, step):
    """Outputs by name, of ONNX Runtime and of PyTorch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.run(None, flat_inputs(step))
    own = {**step, "past": [tuple(t.clone() for t in pair) for pair in step["past"]]}
    with torch.no_grad():
        logits, present, score, *rest, _ = Decoder(model, calibrated)(**own, **calibrated.tensors())
    names = tracing.output_names(LAYERS)
    expected = [t.numpy() for t in (logits, *present, *score, *rest)]
    return dict(zip(names, given, strict=True)), dict(zip(names, expected, strict=True))


@variants
@pytest.mark.parametrize(("batch", "sequence", "past"), SIZES)
def test_graph_equals_module(exported, family, opset, parts, batch, sequence, past):
    variant = exported(family, opset, parts)
    model = variant[0]
    step = random_step(model, batch, sequence, past, seed=100 * batch + 10 * sequence + past)
    if batch == 3 and past + sequence > 3:
        step["attention_mask"][1, :2] = 0
        step["attention_mask"][2, :3] = 0
    if sequence == 1:
        step["pools"][1][:, ::3] = False
    given, expected = run_both(*variant, step)
    real = step["attention_mask"].numpy().astype(bool)
    for name, value in expected.items():
        out = given[name]
        assert out.shape == value.shape, name
        if name.startswith("present"):  # what padding holds is never read
            out, value = np.moveaxis(out, 2, 1)[real], np.moveaxis(value, 2, 1)[real]
        assert np.isfinite(out).all(), name
        np.testing.assert_allclose(out, value, atol=2e-4 * max(1.0, np.abs(value).max()), err_msg=name)
    np.testing.assert_array_equal(given[graph_names.ACTIVE], expected[graph_names.ACTIVE])


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("parts", [pytest.param("thresholds", marks=exhaustive), "everything"])
def test_prefill_is_dense_and_decode_sparse(exported, family, parts):
    variant = exported(family, parts=parts)
    model = variant[0]
    active = {}
    for name, sizes in {"prompt": (7, 0), "more prompt": (7, 5), "one token": (1, 0), "decode": (1, 5)}.items():
        given, _ = run_both(*variant, random_step(model, 8, *sizes))  # of one text the mean varies too much
        active[name] = given[graph_names.ACTIVE].mean(axis=1).sum()
    # Dense drops only what is exactly zero: nothing for SiLU, about half for ReLU.
    dense = LAYERS * NEURONS if family == "llama" else 0.35 * LAYERS * NEURONS
    assert min(active["prompt"], active["more prompt"], active["one token"]) >= dense
    assert active["decode"] < 0.9 * min(active["prompt"], active["one token"])


def test_load_opens_the_pool(exported):
    """Past the reanalysis load a token may use every neuron, whatever its pool says."""
    variant = exported("llama")
    step = random_step(variant[0], 2, 1, 5)
    step["pools"] = [torch.zeros_like(pool) for pool in step["pools"]]
    step["past_logits"] = torch.zeros(2, VOCABULARY)
    step["past_logits"][0, step["input_ids"][0]] = 50  # expected: no surprise, no entropy
    step["past_logits"][1, step["input_ids"][1]] = -50  # unexpected, and all else equally likely
    given, _ = run_both(*variant, step)
    assert given[graph_names.LOAD][0] < 0.1
    assert given[graph_names.LOAD][1] >= 0.9
    assert given[graph_names.ACTIVE][:, 0].tolist() == [0] * LAYERS
    assert (given[graph_names.ACTIVE][:, 1] > 0).all()


@pytest.mark.parametrize("family", few(["llama", "opt"], ["llama"]))
def test_what_is_added_to_thresholds_leaves_prefill_alone(exported, family):
    """Prompts give the logits of the model as it was; decode gives others than thresholds alone."""
    plain, variant = exported(family), exported(family, parts="everything")
    prompt, decode = random_step(variant[0], 2, 7, 0), random_step(variant[0], 2, 1, 5)
    with torch.no_grad():
        dense = random_model(family)(prompt["input_ids"]).logits[:, -1:].numpy()
    given = [run_both(*which, prompt)[0][graph_names.LOGITS] for which in (plain, variant)]
    for logits in given:
        np.testing.assert_allclose(logits, dense, atol=2e-4 * np.abs(dense).max())
    given = [run_both(*which, decode)[0][graph_names.LOGITS] for which in (plain, variant)]
    assert np.abs(given[0] - given[1]).max() > 0.05 * np.ptp(given[0])


def test_a_probe_moves_the_layers_from_its_own_on(exported):
    """The layers below the probe compute the same as without one."""
    plain, variant = exported("llama"), exported("llama", tracing.MINIMUM_OPSET, "clada")
    active = [run_both(*which, random_step(variant[0], 3, 1, 5))[0][graph_names.ACTIVE] for which in (plain, variant)]
    np.testing.assert_array_equal(active[0][:PROBED], active[1][:PROBED])
    assert (active[0][PROBED] != active[1][PROBED]).any()


def test_a_table_decides_by_token(exported):
    """Each text's scale is that of the token it reads: the table's first is dense, and no other."""
    variant = exported("llama", parts="everything")
    step = random_step(variant[0], 3, 1, 5)
    step["input_ids"][:, 0] = torch.tensor([5, 0, 6])
    given, _ = run_both(*variant, step)
    active = given[graph_names.ACTIVE].sum(axis=0)
    assert active[1] == LAYERS * NEURONS
    assert max(active[0], active[2]) < 0.9 * LAYERS * NEURONS


@pytest.mark.parametrize("parts", ["thresholds", "everything"])
def test_padding_does_not_change_a_prompt(exported, parts):
    variant = exported("llama", parts=parts)
    model = variant[0]
    alone = random_step(model, 1, 5, 0)
    padded = random_step(model, 1, 9, 0, seed=7)
    padded["input_ids"][:, 4:] = alone["input_ids"]
    padded["attention_mask"][:, :4] = 0
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp_min(0)
    one, _ = run_both(*variant, alone)
    other, _ = run_both(*variant, padded)
    for name in [graph_names.LOGITS, *(graph_names.score(n) for n in range(LAYERS))]:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=name)


@variants
def test_file_is_what_the_contract_says(exported, family, opset, parts):
    _, calibrated, path = exported(family, opset, parts)
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
    assert shapes["past_key_values.1.key"][2] == "past_sequence_length"
    assert shapes["present.1.value"][2] == "total_sequence_length"
    assert shapes["logits"] == ["batch_size", 1, VOCABULARY]
    assert shapes["active"] == [LAYERS, "batch_size"]

    ours = [node for node in proto.graph.node if node.domain == DOMAIN]
    assert [n.op_type for n in ours].count(FAMILIES[family].op.name) == LAYERS
    assert [n.op_type for n in ours].count(LOAD_SIGNAL.name) == 1
    for node in ours:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert {k: attributes[k].decode() for k in PLUGIN_ATTRIBUTES} == PLUGIN_ATTRIBUTES
    assert {f.name for f in proto.functions if f.domain == DOMAIN} == {n.op_type for n in ours}

    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for name, shape in expected_constants(parts).items():
        assert shapes.pop(name) == shape, name
    assert not [name for name in shapes if name.startswith(("threshold.", "compensation.", "anticipation.", "token_s"))]
    assert_constants_are_kept(path, calibrated)


def expected_constants(parts: str) -> dict[str, list[int]]:
    """Names and shapes of the initializers that a person looks for in the file."""
    shapes = {f"threshold.{n}": [NEURONS] for n in range(LAYERS)}
    shapes |= {"surprisal_knots": [9], "entropy_knots": [9], "scale_knots": [3], "reanalysis_load": []}
    if parts != "thresholds":
        shapes |= {f"compensation.{n}": [WIDTH] for n in range(LAYERS)}
        shapes |= {"anticipation.1.weight": [WIDTH], "anticipation.1.load_weight": [], "anticipation.1.bias": []}
        shapes |= {"anticipation.1.knots": [9], "anticipation.1.factors": [9]}
    if parts == "everything":
        shapes |= {"token_scale": [VOCABULARY]}
    return shapes


def assert_constants_are_kept(path, calibrated, data=None):
    """Constants read from the file are those that were traced, to the bit, and no others."""
    loaded = Calibrated.from_graph(path, data)
    assert loaded.load_map.surprisal_weight == pytest.approx(calibrated.load_map.surprisal_weight)
    for found, expected in zip(loaded.anticipations, calibrated.anticipations, strict=True):
        assert found.site == expected.site
    stored, wanted = loaded.tensors(), calibrated.tensors()
    assert stored.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(stored[name], value, rtol=0, atol=0, msg=name)


@variants
def test_weights_are_stored_once(exported, family, opset, parts):
    model, *_, path = exported(family, opset, parts)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    stored = path.stat().st_size + path.with_name("model.onnx.data").stat().st_size
    proto = onnx.load(path, load_external_data=False)
    bookkeeping = sum(
        len(x.SerializeToString()) for x in [*proto.graph.node, *proto.graph.value_info, *proto.functions]
    )
    assert stored < weights + bookkeeping + 30_000


def test_file_holds_no_paths_of_this_machine(exported):
    *_, path = exported("llama")
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(path.parent).encode() not in content
    assert b"stack_trace" not in content


def test_equal_constants_keep_their_names(tmp_path, traced_anew):
    """The exporter merges initializers of equal value; the calibrated ones must not go."""
    model = random_model("llama")
    sparsify(model)
    calibrated = copy.deepcopy(with_parts("everything"))
    for value in calibrated.tensors().values():
        for tensor in value if isinstance(value, list) else [value]:
            tensor.zero_()
    path = tmp_path / "model.onnx"
    tracing.save(tracing.trace(model, calibrated), path)
    names = [tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer]
    assert len(names) == len(set(names))
    assert set(expected_constants("everything")) == set(calibrated.names()) <= set(names)


def test_all_logits_on_request(exported):
    model, *_, path = exported("llama", all_logits=True)
    step = random_step(model, 2, 7, 0)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run([graph_names.LOGITS], flat_inputs(step))[0]
    with torch.no_grad():
        expected = model(step["input_ids"]).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("parts", few(["thresholds", "everything"], ["everything"]))
def test_tracing_leaves_the_model_as_it_was(traced_anew, parts):
    model = random_model("llama")
    sparsify(model)
    calibrated = with_parts(parts)
    tracing.trace(model, calibrated)
    ids = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        assert model(ids).logits.shape == (1, 4, VOCABULARY)
    current = sparse_layers(model)[0].current
    assert current.steering == Steering()
    assert all(type(tensor) is torch.Tensor for tensor in [*current.trace.active.values(), *calibrated.thresholds])


@pytest.mark.parametrize("opset", [17, 24])
def test_unsupported_opset_is_refused(opset):
    with pytest.raises(CladaError, match=f"opset {opset} is not supported; choose one from 18 to 23"):
        tracing.check_opset(opset)


@pytest.mark.parametrize("in_place_cache", few([False, True], [False]))
def test_four_layers_are_traced(in_place_cache):
    """As many as would make torch take the thresholds' list for the axes of an input."""
    model = random_model("llama", num_hidden_layers=4)
    sparsify(model)
    traced = tracing.trace(model, Calibrated(uniform(model), load_map=LOAD_MAP), in_place_cache=in_place_cache)
    sizes = {str(dim) for value in traced.graph.inputs for dim in value.shape if not isinstance(dim, int)}
    wanted = {graph_names.SEQUENCE_LENGTH, graph_names.TOTAL_SEQUENCE_LENGTH}
    wanted |= (
        {graph_names.CACHE_CAPACITY} if in_place_cache else {graph_names.BATCH_SIZE, graph_names.PAST_SEQUENCE_LENGTH}
    )
    assert sizes == wanted


@pytest.mark.parametrize(
    ("op", "changes", "bodies"),
    [(CACHED_ATTENTION, {"local_window_size": 6}, 1), (QUANTIZED_LINEAR, {"bits": 8}, None)],
    ids=lambda value: getattr(value, "name", None),
)
def test_nodes_of_an_op_share_one_body_or_are_refused(op, changes, bodies):
    """Layers with windows and without read theirs from the node; a body for 4 bits is not one for 8."""
    attributes = dict(next(iter(op.cases())).attributes)
    nodes = [
        onnx_ir.node(
            op.name, [onnx_ir.val(spec.name) for spec in op.inputs], given, domain=DOMAIN, num_outputs=len(op.outputs)
        )
        for given in (attributes, {**attributes, **changes})
    ]
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=nodes, opset_imports={"": 20}), ir_version=10)
    if bodies is None:
        with pytest.raises(CladaError, match="is used with different attributes in one model"):
            tracing._attach_functions(model, 20)
        return
    tracing._attach_functions(model, 20)
    assert len(model.functions) == bodies
