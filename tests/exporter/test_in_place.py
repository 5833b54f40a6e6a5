"""The graph with an in-place cache against PyTorch, and the session that decodes on it."""

import functools
import shutil

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from clada.contract.artifact import data_name, in_place_name
from clada.errors import CladaError
from clada.exporter.cli import main as export_main
from clada.exporter.graph import trace as tracing
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import first_step, next_step, random_step
from clada.exporter.graph.ort_attention import OP, BufferCache, _attention, minimum_onnxruntime
from clada.exporter.graph.rewrites import drop_reshapes
from clada.exporter.graph.rotary import OP as ROTARY
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.patch import sparsify
from clada.ops import CACHED_ATTENTION, graph_names
from clada.runtime import GenerationConfig, Session
from clada.runtime.cli import main as clada_main
from clada.runtime.models.ort_cpu import OnnxRuntimeModel, older_than
from clada.runtime.models.ort_cpu_in_place import InPlaceModel
from tests.exporter.test_trace import LOAD_MAP, assert_constants_are_kept, expected_constants, with_parts
from tests.support.checkpoints import LAYERS, VOCABULARY, random_model, write_checkpoint
from tests.support.exhaustive import few
from tests.support.manifests import edit_manifest, read_manifest, write_manifest
from tests.support.thresholds import uniform

CONTEXT = 128
# Of the largest value of an output.
TOLERANCES = {torch.float32: 2e-4, torch.float16: 1e-2}


def parts_of(family: str) -> str:
    """Which of PARTS a family is tested with, where not said otherwise: each op once with everything."""
    return "everything" if family in ("mistral", "opt") else "thresholds"


VARIANTS = [
    (family, torch.float32, tracing.DEFAULT_OPSET, parts_of(family)) for family in [*FAMILIES, "qwen2 with windows"]
]
VARIANTS += [("llama", torch.float32, tracing.MINIMUM_OPSET, "clada")]
VARIANTS += [("llama", torch.float32, tracing.MAXIMUM_OPSET, "everything")]
VARIANTS += [(family, torch.float16, tracing.DEFAULT_OPSET, "everything") for family in ("llama", "mistral")]
USUAL = [("mistral", torch.float32, tracing.DEFAULT_OPSET, "everything")]
USUAL += [("gpt_neox", torch.float32, tracing.DEFAULT_OPSET, "thresholds")]
USUAL += [("llama", torch.float16, tracing.DEFAULT_OPSET, "everything")]
variants = pytest.mark.parametrize(("family", "dtype", "opset", "parts"), few(VARIANTS, USUAL))
# The first layer sees all, the others six tokens.
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a variant to the patched model, its calibrated values and the graph with an in-place cache.

    It stands beside the portable graph, as in an artifact, where that is asked for: tracing both takes thrice as long.
    """

    @functools.cache
    def make(family: str, dtype: torch.dtype, opset: int, parts: str, all_logits: bool, portable: bool):
        name, _, windows = family.partition(" with ")
        model = random_model(name, **(WINDOWS if windows else {})).to(dtype)
        # In half precision rounding would decide what is near a threshold: none there.
        sparsify(model)
        calibrated = with_parts(parts, largest=0.3 if dtype == torch.float32 else 0.0)
        path = tmp_path_factory.mktemp("in-place") / "model.onnx"
        trace = functools.partial(tracing.trace, model, calibrated, opset=opset, all_logits=all_logits)
        in_place = path.with_name(in_place_name(path))
        if portable:
            tracing.save(trace(), path)
            tracing.save_in_place(trace(in_place_cache=True), path)
        else:
            tracing.save(trace(in_place_cache=True), in_place)
        return model, calibrated, in_place

    def variant(family, dtype=torch.float32, opset=tracing.DEFAULT_OPSET, parts=None, all_logits=False, portable=False):
        return make(family, dtype, opset, parts or parts_of(family), all_logits, portable)

    return variant


def step_inputs(step: dict) -> dict[str, np.ndarray]:
    names = [graph_names.INPUT_IDS, graph_names.ATTENTION_MASK, graph_names.POSITION_IDS, graph_names.PAST_LOGITS]
    return {name: step[name].numpy() for name in names} | {
        graph_names.pool(n): pool.numpy() for n, pool in enumerate(step["pools"])
    }


def run_steps(variant, lengths, all_logits=False):
    """Outputs by name of ONNX Runtime and of PyTorch, and ONNX Runtime's cache, for calls of so many random tokens."""
    model, calibrated, path = variant
    exported = InPlaceModel(path, CONTEXT)
    cache = exported.empty_cache(1)
    decoder, values = Decoder(model, calibrated, all_logits), calibrated.tensors()
    tokens = torch.randint(0, VOCABULARY, (1, sum(lengths)), generator=torch.Generator().manual_seed(5))
    fetch = [graph_names.LOGITS, graph_names.LOAD, graph_names.SURPRISAL, graph_names.ENTROPY, graph_names.ACTIVE]
    fetch += [graph_names.score(n) for n in range(LAYERS)]
    at = lengths[0]
    step = first_step(model, tokens[:, :at], torch.ones(1, at, dtype=torch.int64))
    inputs = step_inputs(step)
    for length in [*lengths[1:], 0]:
        given, cache = exported.step(inputs, cache, fetch)
        with torch.no_grad():
            logits, present, score, load, surprisal, entropy, active, _ = decoder(**step, **values)
        expected = dict(zip(fetch, [logits, load, surprisal, entropy, active, *score], strict=True))
        yield given, {name: tensor.numpy() for name, tensor in expected.items()}, cache, present
        step = next_step(step, tokens[:, at : at + length], logits, present)
        step["position_ids"] = torch.arange(at, at + length)[None]
        inputs = step_inputs(step) | {graph_names.PAST_LOGITS: given[graph_names.LOGITS][:, -1]}
        at += length


def assert_close(given, expected, tolerance):
    for name, value in expected.items():
        assert given[name].shape == value.shape, name
        assert np.isfinite(given[name]).all(), name
        largest = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(given[name], value, rtol=0, atol=tolerance * largest, err_msg=name)


@variants
def test_steps_equal_pytorch(exported, family, dtype, opset, parts):
    """Past a sliding window, and on when the cache is full: it holds 64 tokens, then 128."""
    capacities = []
    for given, expected, cache, present in run_steps(exported(family, dtype, opset, parts), [61, *[1] * 7]):
        assert_close(given, expected, TOLERANCES[dtype])
        if dtype == torch.float32:
            np.testing.assert_array_equal(given[graph_names.ACTIVE], expected[graph_names.ACTIVE])
        capacities.append(cache.capacity)
        for buffer, tensor in zip(cache.buffers, present, strict=True):
            held, value = buffer[:, :, : cache.length], tensor.numpy()
            np.testing.assert_allclose(held, value, rtol=0, atol=TOLERANCES[dtype] * np.abs(value).max())
    assert capacities == [64] * 4 + [128] * 4


@pytest.mark.parametrize("family", ["mistral", "gpt_neox"])
def test_prefill_goes_on_from_a_past(exported, family):
    for given, expected, *_ in run_steps(exported(family), [7, 9, 1, 60, 1]):
        assert_close(given, expected, TOLERANCES[torch.float32])


def test_logits_of_all_positions(exported):
    for given, expected, *_ in run_steps(exported("llama", all_logits=True), [7, 1, 1], all_logits=True):
        assert_close(given, expected, TOLERANCES[torch.float32])


@pytest.mark.parametrize("family", few(FAMILIES, ["mistral", "gpt_neox"]))
def test_a_step_writes_its_own_slot_and_no_other(exported, family):
    buffers, before = [], []
    for given, expected, cache, _ in run_steps(exported(family), [7, 1, 1, 1]):
        if buffers:
            assert all(buffer is same for buffer, same in zip(cache.buffers, buffers, strict=True))
            addresses = {value.data_ptr() for value in cache.binding.get_outputs()}
            assert {buffer.ctypes.data for buffer in cache.buffers} <= addresses
            for buffer, was in zip(cache.buffers, before, strict=True):
                np.testing.assert_array_equal(buffer[:, :, : cache.length - 1], was[:, :, : cache.length - 1])
                assert np.isfinite(buffer[:, :, cache.length - 1]).all()
                assert np.isnan(buffer[:, :, cache.length :]).all()
            assert_close(given, expected, TOLERANCES[torch.float32])
        buffers = list(cache.buffers)
        for buffer in buffers:
            buffer[:, :, cache.length :] = np.nan  # where it is read, it shows
        before = [buffer.copy() for buffer in buffers]


def test_logits_outlive_the_next_step(exported):
    last = None
    for given, *_ in run_steps(exported("mistral"), [7, 1, 1, 1, 1]):
        if last is not None:
            np.testing.assert_array_equal(last[0], last[1])
            assert not np.array_equal(last[1], given[graph_names.LOGITS])
        last = given[graph_names.LOGITS], given[graph_names.LOGITS].copy()


def test_cache_ends_where_the_context_does(exported):
    model, *_, path = exported("gpt_neox")
    exported_model = InPlaceModel(path, context_length=100)
    step = random_step(model, 1, 70, 0)
    _, cache = exported_model.step(step_inputs(step), exported_model.empty_cache(1), [graph_names.LOGITS])
    assert cache.capacity == 100
    with pytest.raises(CladaError, match="the text has 101 tokens; the model's context is 100"):
        exported_model.step(step_inputs(random_step(model, 1, 31, 70)), cache, [graph_names.LOGITS])


def test_padding_is_refused(exported):
    model, *_, path = exported("gpt_neox")
    exported_model = InPlaceModel(path, CONTEXT)
    step = random_step(model, 1, 5, 0)
    step["attention_mask"][:, 0] = 0
    with pytest.raises(CladaError, match="the text is padded"):
        exported_model.step(step_inputs(step), exported_model.empty_cache(1), [graph_names.LOGITS])


@pytest.mark.parametrize(
    ("family", "dtype"), few([("opt", torch.float32), ("qwen3", torch.float16)], [("opt", torch.float32)])
)
def test_file_refers_to_the_weights_of_the_portable_graph(exported, family, dtype):
    parts = "everything"
    _, calibrated, path = exported(family, dtype, parts=parts, portable=True)
    portable = path.with_name("model.onnx")
    onnx.checker.check_model(str(path))
    assert not [note for note in (b"site-packages", str(path.parent).encode()) if note in path.read_bytes()]
    assert path.stat().st_size < portable.stat().st_size < 100_000
    proto, original = (onnx.load(p, load_external_data=False) for p in (path, portable))
    places = [{e.key: e.value for e in t.external_data} for t in proto.graph.initializer if t.external_data]
    assert len(places) > 10
    assert {place["location"] for place in places} == {data_name(portable)}
    # Smaller ones than that are in the portable graph's own file, too.
    assert all(len(t.raw_data) <= 256 for t in proto.graph.initializer)

    for ours, theirs in ((proto.graph.input, original.graph.input), (proto.graph.output, original.graph.output)):
        assert [value.name for value in ours] == [value.name for value in theirs]
    bodies, others = ({f.name: f.SerializeToString() for f in graph.functions} for graph in (proto, original))
    assert bodies.pop(CACHED_ATTENTION.name)
    assert bodies == others
    assert set(expected_constants(parts)) <= {tensor.name for tensor in proto.graph.initializer}
    assert_constants_are_kept(path, calibrated, portable.with_name(data_name(portable)))
    attention = [node for node in proto.graph.node if node.op_type == CACHED_ATTENTION.name]
    assert len(attention) == LAYERS
    assert [list(node.input[3:5]) for node in attention] == [list(graph_names.past(n)) for n in range(LAYERS)]
    assert [list(node.output[1:]) for node in attention] == [list(graph_names.present(n)) for n in range(LAYERS)]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    assert shapes["input_ids"] == [1, "sequence_length"]
    assert shapes["attention_mask"] == [1, "total_sequence_length"]
    assert shapes["past_key_values.1.key"][2] == shapes["present.1.key"][2] == "cache_capacity"
    assert shapes["active"] == [LAYERS, 1]


@pytest.mark.parametrize("family", few(FAMILIES, ["qwen3", "opt"]))
def test_tracing_leaves_the_model_as_it_was(traced_anew, family):
    model = random_model(family, num_hidden_layers=1)
    sparsify(model)
    ids = torch.arange(8).reshape(2, 4)
    before = model(ids).logits
    tracing.trace(model, Calibrated(uniform(model), load_map=LOAD_MAP), in_place_cache=True)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(
    ("family", "rotary", "width"),
    [("llama", "halves", 8), ("qwen3", "halves", 16), ("gpt_neox", "halves", 2), ("opt", "none", 0)],
)
def test_attention_and_rotary_embedding_are_one_node(exported, family, rotary, width):
    """Heads are not split and joined again around it; where they are not normed between, its input is the product."""
    *_, path = exported(family)
    nodes = list(onnx.load(path, load_external_data=False).graph.node)
    assert not {OP, ROTARY, "Neg", "Reshape"} & {node.op_type for node in nodes if node.domain or node.op_type == "Neg"}
    ours = [node for node in nodes if node.op_type == CACHED_ATTENTION.name]
    assert len(ours) == LAYERS
    for node in ours:
        told = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (told["rotary"].decode(), told["rotary_embedding_dim"]) == (rotary, width)
        makers = {other.op_type for other in nodes if set(node.input[:1]) & set(other.output)}
        assert "Reshape" not in makers


@pytest.mark.parametrize(("shape", "kept"), [(("n", 6), 0), ((None, 6), 1), ((6, "n"), 1)])
def test_only_reshapes_to_a_shape_from_before_are_dropped(shape, kept):
    """One whose size nobody knows may be another than that of before."""
    x, middle, end = (
        onnx_ir.val(name, dtype=onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape(sizes))
        for name, sizes in (("x", shape), ("middle", (shape[0], 2, 3)), ("end", ("n", 6) if shape[0] else shape))
    )
    sizes = [onnx_ir.val(name, const_value=onnx_ir.tensor(value)) for name, value in (("a", [0, 2, 3]), ("b", [-1, 6]))]
    nodes = [
        onnx_ir.node("Reshape", [x, sizes[0]], outputs=[middle]),
        onnx_ir.node("Reshape", [middle, sizes[1]], outputs=[end]),
        onnx_ir.node("Relu", [end], outputs=[last := onnx_ir.val("last")]),
    ]
    graph = onnx_ir.Graph([x], [last], nodes=nodes, initializers=sizes, opset_imports={"": 20})
    drop_reshapes(onnx_ir.Model(graph, ir_version=10))
    assert [node.op_type for node in graph] == ["Reshape"] * 2 * kept + ["Relu"]


@pytest.mark.parametrize(("family", "release"), [("llama", "1.20"), ("mistral", "1.24")])
def test_a_sliding_window_needs_a_newer_onnxruntime(family, release):
    model = random_model(family)
    sparsify(model)
    traced = tracing.trace(model, Calibrated(uniform(model), load_map=LOAD_MAP), in_place_cache=True)
    assert minimum_onnxruntime(traced) == release


def test_heads_of_another_width_are_refused_and_the_export_says_so(tmp_path, capsys):
    """The portable graph serves such a model alone."""
    model = random_model("llama", num_attention_heads=4)
    sparsify(model)
    with pytest.raises(CladaError, match="heads are 12 wide, which is no multiple of 8"):
        tracing.trace(model, Calibrated(uniform(model), load_map=LOAD_MAP), in_place_cache=True)
    assert model.config._attn_implementation == "sdpa"

    checkpoint = write_checkpoint(tmp_path / "hf", "llama", num_attention_heads=4, num_hidden_layers=1)
    path = tmp_path / "out" / "model.onnx"
    assert export_main([str(path), "--model", str(checkpoint), "--calibration-tokens", "600"]) == 0
    assert "no graph with an in-place cache: GroupQueryAttention cannot stand for" in capsys.readouterr().out
    assert not path.with_name(in_place_name(path)).exists()
    assert Session(path).generate("def f(x):", GenerationConfig(max_new_tokens=3))[0].tokens
    assert clada_main(["inspect", str(path)]) == 0
    assert "in-place cache: no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"s_aux": torch.zeros(2)}, "takes s_aux"),
        ({"position_bias": torch.zeros(1)}, "takes position_bias"),
        ({"is_causal": False}, "is not causal"),
        ({"attention_mask": torch.zeros(1)}, "an attention mask of its own"),
        ({"value": torch.zeros(1, 2, 3, 16)}, "keys are 8 wide and its values 16"),
        ({"value": torch.ones(1, 2, 3, 8)}, "changes keys or values after they are kept"),
        ({"key": torch.zeros(1, 1, 3, 8)}, "changes keys or values after they are kept"),
    ],
)
def test_attention_that_the_op_does_not_compute_is_refused(options, reason):
    module = torch.nn.Module()
    module.layer_idx = 0
    tensor = torch.zeros(1, 2, 3, 8)
    cache = BufferCache([(tensor, tensor)], *[torch.ones(1, 3, dtype=torch.int64)] * 2)
    cache.update(tensor, tensor, module.layer_idx)
    given = {"query": tensor, "key": tensor, "value": tensor, "attention_mask": None, "scaling": 1.0} | options
    with pytest.raises(CladaError, match=reason):
        _attention(module, **given, buffers=cache)


def tokens_of(path, prompts, count=70):
    return [c.tokens for c in Session(path, threads=1).generate(prompts, GenerationConfig(max_new_tokens=count))]


def test_session_loads_the_graph_it_needs(tiny_artifact):
    session = Session(tiny_artifact, threads=1)
    ids = session.encode("def f(x):")
    assert not session.models._loaded
    assert type(session.prefill([ids]).model) is InPlaceModel
    assert set(session.models._loaded) == {"single"}
    session = Session(tiny_artifact, threads=1)
    assert type(session.prefill([ids, ids]).model) is OnnxRuntimeModel
    assert set(session.models._loaded) == {"portable"}


def test_texts_of_one_session_do_not_mix(tiny_artifact):
    session = Session(tiny_artifact, threads=1)
    config = GenerationConfig(max_new_tokens=70)
    prompts = ["def f(x):", "import os"]
    streams = [session.stream(prompt, config) for prompt in prompts]
    interleaved = [[a.token, b.token] for a, b in zip(*streams, strict=False)]
    for prompt, tokens in zip(prompts, zip(*interleaved, strict=True), strict=True):
        assert list(tokens) == session.generate(prompt, config)[0].tokens[: len(tokens)]


@pytest.mark.parametrize("texts", [1, 2], ids=["in place", "portable"])
def test_a_copied_state_goes_on_by_itself(tiny_artifact, texts):
    """Tokens that one reads after the copy, past a growth of its cache too, do not affect the other."""
    session = Session(tiny_artifact, threads=1)
    prompts = [list(range(5, 15)) for _ in range(texts)]

    def logits_after(state, tokens):
        for token in tokens:
            session.decode(state, [token] * texts)
        return state.logits.copy()

    ways = [[7] * 60, list(range(60))]
    expected = [logits_after(session.prefill(prompts), [30, *way]) for way in ways]
    state = session.prefill(prompts)
    session.decode(state, [30] * texts)
    states = [state.copy(), state]
    for step in range(60):
        for other, way in zip(states, ways, strict=True):
            session.decode(other, [way[step]] * texts)
    for other, logits in zip(states, expected, strict=True):
        np.testing.assert_array_equal(other.logits, logits)
    assert np.abs(expected[0] - expected[1]).max() > 0.1


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    """A copy of the tiny artifact that a test may change."""
    shutil.copytree(tiny_artifact.parent, tmp_path / "artifact")
    return tmp_path / "artifact" / "model.onnx"


def test_artifact_without_the_graph_runs(artifact, tiny_artifact, capsys):
    """As of a model whose attention cannot keep its cache in place."""
    name = in_place_name(artifact)
    artifact.with_name(name).unlink()
    manifest = read_manifest(artifact.parent)
    del manifest["in_place_cache"], manifest["files"][name]
    write_manifest(artifact.parent, manifest)
    assert tokens_of(artifact, ["def f(x):"]) == tokens_of(tiny_artifact, ["def f(x):"])
    assert clada_main(["inspect", str(artifact)]) == 0
    assert "in-place cache: no" in capsys.readouterr().out
    assert clada_main(["inspect", str(tiny_artifact)]) == 0
    assert f"in-place cache: {name}, for one text" in capsys.readouterr().out


def test_older_onnxruntime_runs_the_portable_graph_and_says_so(artifact, checkpoint, capsys):
    edit_manifest(artifact.parent, lambda content: content["in_place_cache"].update(onnxruntime="99.0"))
    with pytest.warns(UserWarning, match=r"needs ONNX Runtime 99\.0; running the portable graph instead"):
        state = Session(artifact).prefill([[5, 6]])
    assert type(state.model) is OnnxRuntimeModel
    assert clada_main(["verify", str(artifact), "--model", str(checkpoint("llama"))]) == 0
    out = capsys.readouterr().out
    assert f"{in_place_name(artifact)} is not compared: it needs ONNX Runtime 99.0" in out
    assert "decode, in-place cache" not in out
    assert [older_than(release) for release in ("1.4", "1.20", "99.0")] == [False, False, True]


@pytest.mark.parametrize("dtype", few([torch.float32, torch.float16], [torch.float16]))
def test_onnxruntime_fuses_the_norms(exported, tmp_path, dtype):
    """Each into one node, two of a layer and the last: on a GPU a step's time is that of its nodes."""
    *_, path = exported("llama", dtype, parts="everything")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    fused = [name for name in nodes if name.endswith("SimplifiedLayerNormalization")]
    assert len(fused) == 2 * LAYERS + 1
    assert "Reciprocal" not in nodes
