"""Sessions whose state stays on a device: on the CPU's memory, against those that hold it in NumPy; CUDA's errors.

What only a GPU can show, that the kernels compute there and that decode is captured, no test here shows.
"""

import copy
import ctypes
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import clada.plugins.onnxruntime.library
from clada.contract.pool import CLOSED_TOKENS, HostScore
from clada.errors import CladaError
from clada.exporter.export import ExportConfig, export
from clada.exporter.graph import trace as tracing
from clada.exporter.graph.decoder_inputs import random_step
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.patch import sparsify
from clada.ops import OPS, graph_names
from clada.plugins.onnxruntime import CUDA_PROVIDER, library_path, register
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.cli import main as clada_main
from clada.runtime.models.memory import Slab, put, read
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel
from clada.runtime.models.ort_cuda import DeviceModel
from clada.runtime.models.ort_cuda_in_place import DeviceInPlaceModel
from clada.runtime.models.ort_cuda_session import GRAPH_ID, check_runs_on_cuda
from clada.runtime.models.ort_errors import one_line_errors
from clada.runtime.models.score import DeviceScore, accumulation
from clada.runtime.telemetry import TokenStats
from tests.conftest import built_for_cuda
from tests.exporter.test_in_place import step_inputs
from tests.exporter.test_trace import LOAD_MAP
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import random_model, write_checkpoint
from tests.support.manifests import edit_manifest
from tests.support.op_backends import body_model
from tests.support.thresholds import uniform

EXECUTION = Execution(threads=1)
PROMPTS = ["def f(x):", "import os\nimport sys\n", "for i in range(10):\n    print("]
# So many that a pool is opened for having been closed for long, and that the cache grows past 64 tokens.
CONFIG = GenerationConfig(max_new_tokens=CLOSED_TOKENS + 20)
SAMPLED = GenerationConfig(max_new_tokens=40, sampling=SamplingConfig(temperature=0.9, seed=3))


@pytest.fixture(params=["tiny_artifact", "tiny_half_artifact"], ids=["float32", "float16"])
def artifact(request) -> Path:
    return request.getfixturevalue(request.param)


def on_device(path: Path, fixed_shapes: bool = False) -> Session:
    """A session whose models hold their state through ONNX Runtime, in the CPU's memory."""
    session = Session(path, threads=1)
    in_place = session.artifact.in_place_model
    session.models.take("portable", DeviceModel(path, EXECUTION))
    session.models.take("single", DeviceInPlaceModel(in_place, session.context_length, EXECUTION, fixed_shapes))
    return session


def assert_same(ours, theirs):
    """The same tokens and the same telemetry, to the bit."""
    assert [c.tokens for c in ours] == [c.tokens for c in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for field in dataclasses.fields(TokenStats):
            np.testing.assert_array_equal(*([getattr(s, field.name) for s in c.stats] for c in (a, b)), field.name)


@pytest.mark.parametrize("fixed_shapes", [False, True], ids=["growing mask", "fixed shapes"])
@pytest.mark.parametrize("config", [CONFIG, SAMPLED], ids=["greedy", "sampled"])
def test_one_text_comes_out_as_on_the_host(artifact, config, fixed_shapes):
    host, device = Session(artifact, threads=1), on_device(artifact, fixed_shapes)
    for prompt in PROMPTS[:2]:
        ours, theirs = device.generate(prompt, config), host.generate(prompt, config)
        assert_same(ours, theirs)
        assert {tuple(s.pool) for s in ours[0].stats} != {ours[0].stats[0].pool} or len(ours[0].tokens) < 60


def test_a_batch_comes_out_as_on_the_host(artifact):
    host, device = Session(artifact, threads=1), on_device(artifact)
    for config in (CONFIG, SAMPLED):
        assert_same(device.generate(PROMPTS, config), host.generate(PROMPTS, config))


def test_one_text_on_the_portable_graph(artifact):
    device = on_device(artifact)
    device.models.take("single", device.models.of("portable"))
    host = Session(artifact, threads=1)
    host.models.take("single", host.models.of("portable"))
    assert_same(device.generate(PROMPTS[0], CONFIG), host.generate(PROMPTS[0], CONFIG))


def test_a_quantized_model_comes_out_as_on_the_host(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "hf", "llama", hidden_size=64, num_attention_heads=4)
    path = tmp_path / "model.onnx"
    export(path, str(checkpoint), ExportConfig(HALF_OF_NEURONS, calibration_tokens=600, quantize="int4"))
    host, device = Session(path, threads=1), on_device(path, fixed_shapes=True)
    assert_same(device.generate(PROMPTS[0], SAMPLED), host.generate(PROMPTS[0], SAMPLED))


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_copied_state_goes_on_by_itself(tiny_artifact, texts, fixed_shapes):
    """Pools, their score and the cache too: tokens that one reads after the copy do not affect the other."""
    host, device = Session(tiny_artifact, threads=1), on_device(tiny_artifact, fixed_shapes)
    prompts, ways = [list(range(5, 15)) for _ in range(texts)], [[7] * 70, list(range(70))]
    given = {}
    for session in (host, device):
        state = session.prefill(prompts)
        session.decode(state, [30] * texts)
        for way, going in zip(ways, [state.copy(), state], strict=True):
            stats = [session.decode(going, [token] * texts) for token in way]
            given.setdefault(id(session), []).append((stats, going.logits.copy(), list(going.pools.score)))
    for (a_stats, a_logits, a_score), (b_stats, b_logits, b_score) in zip(*given.values(), strict=True):
        assert a_stats == b_stats
        np.testing.assert_array_equal(a_logits, b_logits)
        for a, b in zip(a_score, b_score, strict=True):
            np.testing.assert_array_equal(a, b)


def test_texts_of_one_session_do_not_mix(tiny_artifact):
    session = on_device(tiny_artifact, fixed_shapes=True)
    config = GenerationConfig(max_new_tokens=70)
    streams = [session.stream(prompt, config) for prompt in PROMPTS[:2]]
    interleaved = [[a.token, b.token] for a, b in zip(*streams, strict=False)]
    for prompt, tokens in zip(PROMPTS, zip(*interleaved, strict=True), strict=False):
        assert list(tokens) == session.generate(prompt, config)[0].tokens[: len(tokens)]


def test_fixed_shapes_keep_what_a_graph_is_captured_of(tiny_artifact, monkeypatch):
    """A graph's id stands for one set of addresses and shapes, and texts that end leave theirs to the next."""
    bound: dict[int, dict] = {}
    for kind in ("input", "output"):
        method = getattr(onnxruntime.IOBinding, f"bind_{kind}")

        def bind(self, name, device, index, dtype=None, shape=None, address=None, *, _method=method, _kind=kind):
            bound.setdefault(id(self), {})[_kind, name] = (tuple(shape), address)
            return _method(self, name, device, index, dtype, shape, address)

        monkeypatch.setattr(onnxruntime.IOBinding, f"bind_{kind}", bind)
    session = on_device(tiny_artifact, fixed_shapes=True)
    run, graphs = session.models.of("single")._session.run_with_iobinding, {}

    def watched(binding, options):
        graph_id = options.get_run_config_entry(GRAPH_ID)
        shapes = bound[id(binding)]
        assert (graph_id == "-1") == (shapes["input", graph_names.INPUT_IDS][0] != (1, 1))
        if graph_id != "-1":
            held = [value.data_ptr() for value in binding.get_outputs()]
            assert graphs.setdefault(graph_id, (dict(shapes), held)) == (shapes, held)
            assert shapes["input", graph_names.ATTENTION_MASK][0] in {(1, 64), (1, 128)}
        return run(binding, options)

    monkeypatch.setattr(session.models.of("single")._session, "run_with_iobinding", watched)
    for _ in range(3):
        session.generate(PROMPTS[0], GenerationConfig(max_new_tokens=70))
    assert len(graphs) == 4  # two capacities, two logits


def test_only_what_is_new_goes_to_the_device(tiny_artifact, monkeypatch):
    """In a step ids and positions, and three factors a text; the pools when they are chosen anew or opened."""
    session = on_device(tiny_artifact)
    state = session.prefill([session.encode(PROMPTS[0])])
    written: list[str] = []
    write = Slab.write
    monkeypatch.setattr(Slab, "write", lambda self, arrays: (written.extend(sorted(arrays)), write(self, arrays)))
    session.decode(state, [7])
    written.clear()
    session.decode(state, [9])
    assert written == [graph_names.INPUT_IDS, graph_names.POSITION_IDS, "fade", "inside", "outside"]
    latest = state.cache.buffers.latest
    assert np.shares_memory(state.logits, latest)
    with pytest.raises(ValueError, match="read-only"):
        state.logits[:] = 0  # it would not reach the device


def test_logits_that_are_not_the_last_step_s_are_brought_there(tiny_artifact):
    """The surprisal of a step follows from the logits it is given."""
    session = on_device(tiny_artifact)
    state = session.prefill([session.encode(PROMPTS[0])])
    before = state.copy()
    flat = np.zeros_like(state.logits)
    before.logits = flat
    assert session.decode(before, [7])[0].surprisal == pytest.approx(np.log(flat.shape[1]), rel=1e-4)
    assert session.decode(state, [7])[0].surprisal != pytest.approx(np.log(flat.shape[1]), rel=1e-4)


@pytest.mark.parametrize("token", [512, -1])
def test_a_token_outside_the_vocabulary_is_named(tiny_artifact, token):
    """The kernels of a device cannot raise."""
    session = on_device(tiny_artifact)
    state = session.prefill([[5, 6]])
    with pytest.raises(CladaError, match=f"holds token {token}, which the model's vocabulary of 512 does not"):
        session.decode(state, [token])


def test_padding_and_too_long_a_text_are_refused(tiny_artifact):
    session = on_device(tiny_artifact)
    state = session.prefill([list(range(5, 15))])
    with pytest.raises(CladaError, match="the text is padded"):
        session.decode(state, [7], [False])
    state = session.prefill([[7] * 127])
    session.decode(state, [7])
    with pytest.raises(CladaError, match="the text has 129 tokens; the model's context is 128"):
        session.decode(state, [7])


def test_logits_of_all_positions(tmp_path):
    """A graph with all logits: those of a prefill are read and not kept."""
    model = random_model("llama")
    sparsify(model)
    calibrated = Calibrated(uniform(model), load_map=LOAD_MAP)
    path = tmp_path / "model.onnx"
    tracing.save(tracing.trace(model, calibrated, all_logits=True), path)
    host, device = OnnxRuntimeModel(path, EXECUTION), DeviceModel(path, EXECUTION)
    caches = [m.empty_cache(2) for m in (host, device)]
    past = np.zeros((2, host.vocabulary), np.float32)
    for length, before in ((5, 0), (1, 5), (3, 6), (1, 9)):
        inputs = step_inputs(random_step(model, 2, length, before, seed=length)) | {graph_names.PAST_LOGITS: past}
        given = []
        for at, runner in enumerate((host, device)):
            outputs, caches[at] = runner.step(inputs, caches[at], [graph_names.LOGITS, graph_names.LOAD])
            given.append(outputs)
        for name in (graph_names.LOGITS, graph_names.LOAD):
            np.testing.assert_array_equal(given[0][name], given[1][name])
        assert given[1][graph_names.LOGITS].shape[1] == length
        past = given[1][graph_names.LOGITS][:, -1]


def test_the_accumulation_is_a_valid_graph():
    onnx.checker.check_model(onnx.load_from_string(accumulation()), full_check=True)


def test_a_running_score_rounds_as_on_the_host():
    """Layers of unequal width, texts of unequal factors; to the bit, over many tokens and after a copy."""
    rng = np.random.default_rng(0)
    shapes = [(3, 300), (3, 7), (3, 256)]
    start = [rng.random(shape, np.float32) for shape in shapes]
    session = onnxruntime.InferenceSession(accumulation(), providers=["CPUExecutionProvider"])
    scores = [HostScore(start), DeviceScore(session, start, "cpu")]
    used = Slab({graph_names.score(n): (shape, np.float32) for n, shape in enumerate(shapes)}, "cpu")
    masks = [rng.random(shape) < 0.5 for shape in shapes]
    for step in range(20):
        if step == 9:
            masks = [rng.random(shape) < 0.5 for shape in shapes]
        if step == 15:
            scores = copy.deepcopy(scores)
        share = [rng.random(shape, np.float32) for shape in shapes]
        used.write({graph_names.score(n): values for n, values in enumerate(share)})
        factors = [rng.random((3, 1), np.float32) for _ in range(3)]
        scores[0].add(share, masks, *factors)
        scores[1].add(used, masks, *factors)
        for ours, theirs in zip(*scores, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_memory_is_of_its_own():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = put(array.T, "cpu")
    out = read(value)
    np.testing.assert_array_equal(out, array.T)
    array[:] = 9
    value.update_inplace(np.full((3, 2), 5, np.float32))
    assert (out != 5).any() and (read(value) == 5).all()


# CUDA, on a machine without it.


NO_PROVIDER = pytest.mark.skipif(
    CUDA_PROVIDER in onnxruntime.get_available_providers(), reason="this onnxruntime knows CUDA"
)


@pytest.fixture
def cuda_library(monkeypatch) -> Path:
    """The library for CUDA that `make test-cuda` links, which sessions take."""
    path = built_for_cuda("onnxruntime/cuda/libclada_onnxruntime_cuda.so")
    monkeypatch.setitem(clada.plugins.onnxruntime.library._elsewhere, "cuda", path)
    return path


@NO_PROVIDER
def test_an_onnxruntime_without_cuda_is_named(tiny_artifact, capsys):
    message = rf"onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider: .*pip install onnxruntime-gpu"
    with pytest.raises(CladaError, match=message):
        Session(tiny_artifact, device="cuda")
    for command in ("run", "chat"):
        options = ["--prompt", "a"] if command == "run" else []
        assert clada_main([command, str(tiny_artifact), "--device", "cuda", *options]) != 0
        err = capsys.readouterr().err
        assert "has no CUDAExecutionProvider" in err
        assert len(err.strip().splitlines()) == 1


@NO_PROVIDER
def test_kernels_need_the_provider(cuda_library):
    with pytest.raises(CladaError, match="has no CUDAExecutionProvider"):
        register(onnxruntime.SessionOptions(), device="cuda")


def test_without_cuda_kernels_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(clada.plugins.onnxruntime.library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(CladaError, match=r"no CUDA kernels \(libclada_onnxruntime_cuda.so\): .*CLADA_CUDA=1"):
        register(onnxruntime.SessionOptions(), device="cuda")


def test_a_session_that_fell_back_to_the_cpu_is_refused(tiny_artifact):
    """ONNX Runtime falls back with a warning where CUDA's libraries or the driver are missing."""
    session = onnxruntime.InferenceSession(accumulation(), providers=["CPUExecutionProvider"])
    with pytest.raises(CladaError, match="cannot use CUDA and would run on the CPU"):
        check_runs_on_cuda(session)


def test_errors_of_a_device_are_one_line():
    """The first is of an allocation that no machine can serve."""
    full = r"the memory of the device \(cpu\) is full: take fewer or shorter texts"
    with pytest.raises(CladaError, match=full), one_line_errors("cpu"):
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([1 << 44], np.float64, "cpu", 0)
    session = onnxruntime.InferenceSession(accumulation(), providers=["CPUExecutionProvider"])
    failed = r"ONNX Runtime .* failed on the device \(cpu\): "
    with pytest.raises(CladaError, match=failed) as caught, one_line_errors("cpu"):
        session.run_with_iobinding(session.io_binding())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'; it must be one of cpu, cuda"),
        ({"device": "cuda", "weights": "bfloat16"}, "weights=bfloat16 is for the CPU, and device is 'cuda'"),
        ({"cuda_graph": True}, "cuda_graph needs device='cuda', and device is 'cpu'"),
    ],
)
def test_unknown_ways_to_run_are_refused(tiny_artifact, options, message):
    with pytest.raises(CladaError, match=message):
        Session(tiny_artifact, **options)


def registered(library: Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return options


def test_the_cuda_library_registers_without_cuda(cuda_library):
    """ONNX Runtime takes its ops' schemas, finds no kernel of theirs for the CPU, and runs other models."""
    session = onnxruntime.InferenceSession(accumulation(), registered(cuda_library))
    assert session.get_providers()[-1] == "CPUExecutionProvider"
    for op in OPS.values():
        model = body_model(op, "float16", {attribute.name: attribute.default for attribute in op.attributes}, 20)
        del model.functions[:]
        with pytest.raises(Exception, match=rf"(find kernel|an implementation) for (clada\.)?{op.name}\b"):
            onnxruntime.InferenceSession(model.SerializeToString(), registered(cuda_library), ["CPUExecutionProvider"])
        del model.graph.node[0].input[-1]  # the schema knows how many there are
        with pytest.raises(Exception, match=f"{op.name}.*input"):
            onnxruntime.InferenceSession(model.SerializeToString(), registered(cuda_library), ["CPUExecutionProvider"])


def test_a_session_takes_a_domain_once(cuda_library):
    """Why the libraries are two, and a session registers one of them."""
    options = registered(cuda_library)
    options.register_custom_ops_library(str(library_path()))
    with pytest.raises(Exception, match="Domain already set"):
        onnxruntime.InferenceSession(accumulation(), options)


def test_the_cuda_library_needs_no_driver(cuda_library):
    """It loads in a process by itself; the parts of CUDA that it links to are in it."""
    assert ctypes.CDLL(str(cuda_library)).RegisterCustomOps


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"in_place_cache": {"onnxruntime": "1.20", "fixed_shapes": False}},
            "it was exported by an older release of clada",
        ),
        ({"in_place_cache": {"onnxruntime": "99.0", "fixed_shapes": True}}, "needs ONNX Runtime 99.0"),
        ({}, "its attention knows float16 there"),
    ],
)
def test_what_cannot_be_captured_is_refused(tiny_artifact, tmp_path, monkeypatch, change, reason):
    """Where there is a GPU: a session that says that it captures does."""
    monkeypatch.setattr("clada.runtime.loading.check_cuda", lambda: None)
    folder = Path(shutil.copytree(tiny_artifact.parent, tmp_path / "artifact"))
    edit_manifest(folder, lambda content: content.update(change))
    with pytest.raises(CladaError, match=f"cannot be captured in a CUDA graph: .*{reason}"):
        Session(folder / "model.onnx", device="cuda", cuda_graph=True)


def failing_once(monkeypatch, owner, name: str) -> None:
    """A method that does its work and then fails, the next time it is called."""
    work = getattr(owner, name)

    def fail(*given):
        work(*given)
        monkeypatch.setattr(owner, name, work)
        raise CladaError("the device failed")

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.fault("results", "a decode step that fails on a device", now="the state is as it was, and goes on")
@pytest.mark.parametrize("texts", [1, 2])
def test_a_failed_step_leaves_the_state_as_it_was(tiny_artifact, texts, monkeypatch):
    """Also where the cache was to grow in that step."""
    session = on_device(tiny_artifact, fixed_shapes=True)
    prompts = [list(range(5, 65))] * texts
    state, expected = session.prefill(prompts), session.prefill(prompts)
    for token in range(30, 40):
        with pytest.raises(CladaError, match="holds token 9999"):
            session.decode(state, [9999] * texts)
        failing_once(monkeypatch, type(state.model), "_run")
        with pytest.raises(CladaError, match="the device failed"):
            session.decode(state, [7] * texts)
        assert session.decode(state, [token] * texts) == session.decode(expected, [token] * texts)
        np.testing.assert_array_equal(state.logits, expected.logits)


def test_a_device_that_fails_after_the_step_ends_the_texts(tiny_artifact, monkeypatch):
    """The state has advanced already, so that nothing may be read from it any more."""
    session = on_device(tiny_artifact)
    state = session.prefill([[5, 6, 7]])
    failing_once(monkeypatch, DeviceScore, "add")
    with pytest.raises(CladaError, match="the device failed"):
        session.decode(state, [8])
    for use in (state.copy, lambda: session.decode(state, [8])):
        with pytest.raises(CladaError, match="an earlier step of this state failed half-way: read its texts again"):
            use()
    assert session.decode(session.prefill([[5, 6, 7]]), [8])


def test_what_is_on_a_device_is_for_the_process_that_made_it(tiny_artifact):
    session = on_device(tiny_artifact)
    assert session.kernels
    session.models._begin_in_child()
    for use in (lambda: session.prefill([[5]]), lambda: session.generate("a")):
        with pytest.raises(CladaError, match=r"made before fork\(\), and what is on a GPU is the parent's"):
            use()
