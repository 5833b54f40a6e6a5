"""Sessions of TensorRT engines: their loop against ONNX Runtime's, and every way in which an engine cannot be run.

There is no GPU here. What runs on it is stood in for by engine_stand_in.py of tests/support; that TensorRT computes the
same and that CUDA copies what it is told to, no test here shows.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from clada.contract.engine_record import COPIED, IN_PLACE, EngineRecord, read_record, record_path, write_record
from clada.contract.files import file_hash
from clada.contract.manifest import MANIFEST_NAME
from clada.contract.pool import CLOSED_TOKENS
from clada.errors import CladaError
from clada.exporter.export import ExportConfig, export
from clada.ops import graph_names
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.cli import main as clada_main
from clada.runtime.models.cuda_driver import why_no_gpu
from clada.runtime.models.memory import Slab
from clada.runtime.trt.building.profiles import Limits, profiles_for
from clada.runtime.trt.contexts import EngineSession
from clada.runtime.trt.engine_model import EngineModel
from clada.runtime.trt.load import build_accumulation
from clada.runtime.trt.package import log_of
from tests.conftest import ROOT
from tests.runtime.test_device import PROMPTS, assert_same
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import write_checkpoint
from tests.support.engine_stand_in import HostMemory, host_model

CAPACITY, MAX_PROMPT, MAX_BATCH = 112, 40, 3
# Of a cache that is written in place: at first it has half of them.
SLOTS = 128
# So many that a pool is opened for having been closed for long.
CONFIG = GenerationConfig(max_new_tokens=CLOSED_TOKENS + 20)
SAMPLED = GenerationConfig(max_new_tokens=40, sampling=SamplingConfig(temperature=0.9, seed=3))


@dataclasses.dataclass
class _Tensor:
    """An input as a parsed network has it."""

    name: str
    shape: tuple[int, ...]
    names: list

    def get_dimension_name(self, index: int) -> str:
        return str(self.names[index])


class _Network:
    """The inputs of an ONNX file, as a parsed network has them."""

    def __init__(self, model: Path) -> None:
        self._inputs = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()
        self.num_inputs = len(self._inputs)

    def get_input(self, index: int) -> _Tensor:
        value = self._inputs[index]
        return _Tensor(value.name, tuple(s if isinstance(s, int) else -1 for s in value.shape), value.shape)


def write_engine(model: Path, content: bytes = b"stood in for", **changes) -> Path:
    """An engine of an artifact and its record, which `clada build` would write."""
    engine = model.with_suffix(".engine")
    engine.write_bytes(content)
    manifest = model.parent / MANIFEST_NAME
    record = EngineRecord(
        runtime="tensorrt-rtx",
        runtime_version="1.0",
        compute_capability=["8.9"],
        plugins=False,
        plugin_release="0",
        sha256=file_hash(engine),
        manifest=MANIFEST_NAME,
        manifest_sha256=file_hash(manifest),
        dtype=json.loads(manifest.read_text())["model"]["dtype"],
        max_batch=MAX_BATCH,
        max_prompt=MAX_PROMPT,
        capacity=CAPACITY,
        kv_cache=COPIED,
        profiles=profiles_for(_Network(model), Limits(MAX_BATCH, MAX_PROMPT, CAPACITY), COPIED),
    )
    write_record(dataclasses.replace(record, **changes), record_path(engine))
    return engine


@pytest.fixture(scope="module", params=["tiny_artifact", "tiny_half_artifact"], ids=["float32", "float16"])
def artifact(request, tmp_path_factory) -> Path:
    """The ONNX file of an artifact of each type."""
    folder = tmp_path_factory.mktemp("engine") / "artifact"
    shutil.copytree(request.getfixturevalue(request.param).parent, folder)
    return folder / "model.onnx"


@pytest.fixture
def copy(tiny_artifact, tmp_path) -> Path:
    """The ONNX file of a tiny Llama, which a test may change."""
    return Path(shutil.copytree(tiny_artifact.parent, tmp_path / "artifact")) / "model.onnx"


@pytest.fixture
def stood_in(monkeypatch):
    """Lets engines run on the stand-in; gives the loaded ones, in order."""
    loaded: list[EngineModel] = []

    def load(path: Path, record: EngineRecord) -> EngineModel:
        loaded.append(host_model(path.with_suffix(".onnx"), record, HostMemory()))
        return loaded[-1]

    monkeypatch.setattr("clada.runtime.loading.load_engine", load)
    return loaded


def on_host(model: Path) -> Session:
    """The session that an engine's must equal to the bit: all texts on the graph that the engine is of."""
    session = Session(model, threads=1)
    session.models.take("single", session.models.of("portable"))
    return session


@pytest.mark.parametrize("config", [CONFIG, SAMPLED], ids=["greedy", "sampled"])
def test_one_text_comes_out_as_of_the_onnx_file(artifact, stood_in, config):
    engine, host = Session(write_engine(artifact)), on_host(artifact)
    for prompt in PROMPTS[:2]:
        ours, theirs = engine.generate(prompt, config), host.generate(prompt, config)
        assert_same(ours, theirs)
        assert [c.text for c in ours] == [c.text for c in theirs]
    assert len(stood_in) == 1


def test_a_batch_comes_out_as_of_the_onnx_file(artifact, stood_in):
    """Prompts of unequal length: the shorter are padded on the left."""
    engine, host = Session(write_engine(artifact)), on_host(artifact)
    for config in (CONFIG, SAMPLED):
        assert_same(engine.generate(PROMPTS, config), host.generate(PROMPTS, config))


def test_the_command_line_runs_an_engine(copy, stood_in, capsys):
    """The same text and the same table as of the ONNX file, but for the seconds."""
    host = on_host(copy)
    expected = host.generate(PROMPTS[0], GenerationConfig(max_new_tokens=12))[0]
    options = ["--prompt", PROMPTS[0], "--max-new-tokens", "12", "--stats"]
    assert clada_main(["run", str(write_engine(copy)), *options]) == 0
    out, err = capsys.readouterr()
    assert out.rstrip("\n") == expected.text.rstrip("\n")
    assert f"{expected.stats[3].surprisal:9.3f}" in err.splitlines()[4]


def test_an_engine_is_shown(copy, capsys):
    """Without its ONNX files, which it does not need; and every defect in one line."""
    engine = write_engine(copy)
    for path in copy.parent.glob("*.onnx*"):
        path.unlink()
    assert clada_main(["inspect", str(engine)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "engine: tensorrt-rtx 1.0, for GPUs of compute capability 8.9; function bodies"
    assert lines[1] == "limits: batch 3, prompt 40, text 112 tokens; cache copied"
    assert lines[2].startswith("llama, ")
    engine.write_bytes(b"other")
    assert clada_main(["inspect", str(engine)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def write_in_place_engine(model: Path) -> Path:
    """An engine with the new keys and values as outputs, and beside it the graph that stands in for it."""
    proto = onnx.load(str(model))
    producers = {name: node for node in proto.graph.node for name in node.output}
    for value in proto.graph.output:
        if value.name.startswith("present."):
            concat = producers[value.name]
            assert concat.op_type == "Concat"
            concat.output[0] = f"every.{value.name}"
            for node in proto.graph.node:
                node.input[:] = [f"every.{value.name}" if name == value.name else name for name in node.input]
            proto.graph.node.append(onnx.helper.make_node("Identity", [concat.input[1]], [value.name]))
            value.type.tensor_type.shape.dim[2].dim_param = graph_names.SEQUENCE_LENGTH
    onnx.save(proto, str(model.with_name("in_place.onnx")))
    profiles = profiles_for(_Network(model), Limits(MAX_BATCH, MAX_PROMPT, SLOTS), IN_PLACE)
    engine = write_engine(model, kv_cache=IN_PLACE, capacity=SLOTS, profiles=profiles)
    for path in (engine, record_path(engine)):
        path.replace(path.with_name(path.name.replace("model", "in_place")))
    return engine.with_name("in_place.engine")


@pytest.mark.parametrize("texts", [1, 3])
def test_a_cache_written_in_place(copy, stood_in, texts):
    """To rounding: attention sums over free slots too. Decode is captured for each size and either of the logits."""
    host, engine = on_host(copy), Session(write_in_place_engine(copy))
    memory = stood_in[0]._memory
    for start in range(2):
        prompts = [[5 + start, *range(9, 12 + 7 * text)] for text in range(texts)]
        states = [session.prefill(prompts) for session in (host, engine)]
        for token in range(30, 90):
            alive = [text != 1 or token < 50 for text in range(texts)]
            theirs, ours = (
                session.decode(state, [token] * texts, alive)
                for session, state in zip((host, engine), states, strict=True)
            )
            np.testing.assert_allclose(states[1].logits, states[0].logits, atol=2e-4)
            assert [s.active for s in ours] == [s.active for s in theirs]
            assert [s.pool for s in ours] == [s.pool for s in theirs]
            for name in ("surprisal", "entropy", "load"):
                a, b = ([getattr(s, name) for s in stats] for stats in (ours, theirs))
                np.testing.assert_allclose(a, b, atol=1e-4)
        if start == 0:
            copied = states[1].copy()
            engine.decode(states[1], [3] * texts)
            engine.decode(copied, [3] * texts)
            np.testing.assert_array_equal(states[1].logits, copied.logits)
            del copied
        assert memory.launches > 50
    runs = stood_in[0]._session._contexts["decode"].context.runs
    assert runs <= 20 and memory.graphs <= 8 and memory.launches > 100


def test_a_graph_is_captured_again_once_its_context_had_other_shapes(copy, stood_in):
    session = Session(write_in_place_engine(copy))
    memory = stood_in[0]._memory
    state = session.prefill([[5, 6]])
    for _ in range(12):
        session.decode(state, [7])
    assert memory.graphs == 2  # one for either of the logits
    session.decode(session.prefill([[5, 6], [7]]), [8, 8])
    launches = memory.launches
    for _ in range(2):
        session.decode(state, [7])
    assert (memory.graphs, memory.launches) == (2, launches)
    for _ in range(4):
        session.decode(state, [7])
    assert (memory.graphs, memory.launches) == (4, launches + 4)


def test_an_engine_s_memory_is_what_its_texts_need(copy, stood_in):
    """A text takes the memory of the one before; another number of texts gives it back first."""
    session = Session(write_engine(copy))
    memory = stood_in[0]._memory
    config = GenerationConfig(max_new_tokens=3)
    session.generate(PROMPTS[0], config)
    one = dict(memory.alive)
    session.generate(PROMPTS[1], config)
    assert memory.alive.keys() == one.keys()
    session.generate(PROMPTS[:2], config)
    assert sum(memory.alive.values()) < 2.2 * sum(one.values())
    session.generate(PROMPTS[0], config)
    assert sorted(memory.alive.values()) == sorted(one.values())


def test_a_copied_state_goes_on_by_itself(copy, stood_in):
    """Pools, their score and the cache too: tokens that one reads after the copy do not affect the other."""
    sessions, ways, given = (on_host(copy), Session(write_engine(copy))), [[7] * 30, list(range(30))], []
    for session in sessions:
        state = session.prefill([list(range(5, 15)), [9, 8]])
        session.decode(state, [30, 31])
        for way, going in zip(ways, [state.copy(), state], strict=True):
            stats = [session.decode(going, [token] * 2) for token in way]
            given.append((stats, going.logits.copy(), list(going.pools.score)))
    for theirs, ours in zip(given[:2], given[2:], strict=True):
        assert theirs[0] == ours[0]
        np.testing.assert_array_equal(theirs[1], ours[1])
        for a, b in zip(theirs[2], ours[2], strict=True):
            np.testing.assert_array_equal(a, b)


def test_texts_of_one_session_do_not_mix(copy, stood_in):
    session = Session(write_engine(copy))
    config = GenerationConfig(max_new_tokens=20)
    streams = [session.stream(prompt, config) for prompt in PROMPTS[:2]]
    interleaved = [[a.token, b.token] for a, b in zip(*streams, strict=False)]
    for prompt, tokens in zip(PROMPTS, zip(*interleaved, strict=True), strict=False):
        assert list(tokens) == session.generate(prompt, config)[0].tokens[: len(tokens)]


def test_only_what_is_new_goes_to_the_gpu(copy, stood_in, monkeypatch):
    """Ids, positions, the mask, and three factors a text; pools when they are chosen anew or opened."""
    session = Session(write_engine(copy))
    state = session.prefill([session.encode(PROMPTS[0])])
    session.decode(state, [7])
    written: list[str] = []
    write = Slab.write
    monkeypatch.setattr(Slab, "write", lambda self, arrays: (written.extend(sorted(arrays)), write(self, arrays)))
    session.decode(state, [9])
    inputs = [graph_names.INPUT_IDS, graph_names.POSITION_IDS, graph_names.ATTENTION_MASK]
    assert written == [*inputs, "fade", "inside", "outside"]


# Limits.


def test_texts_end_where_the_engine_s_cache_does(copy, stood_in):
    """One by its own length; in a batch each text, the padding of the shorter ones included."""
    session = Session(write_engine(copy, capacity=30))
    assert session.context_length == 30
    session.end_tokens = frozenset()
    prompts = [list(range(5, 5 + length)) for length in (20, 4)]
    for texts, lengths in ((prompts[:1], [10]), (prompts[1:], [26]), (prompts, [10, 10])):
        state = session.prefill(texts)
        assert not session.is_full(state)
        completions = session.generate(texts, GenerationConfig(max_new_tokens=60))
        assert [len(c.tokens) for c in completions] == lengths
        assert {c.finish for c in completions} == {"length"}


def test_what_exceeds_an_engine_is_refused(copy, stood_in):
    session = Session(write_engine(copy, capacity=30, max_prompt=20, max_batch=2))
    with pytest.raises(CladaError, match=r"3 texts are more than the 2 .*: give fewer at once, .*--max-batch 3$"):
        session.generate(["a", "b", "c"])
    with pytest.raises(CladaError, match=r"the prompt has 21 tokens, .* built for 20: build it with --max-prompt 21$"):
        session.prefill([[7] * 21, [7]])
    with pytest.raises(CladaError, match="the prompt has 30 tokens; the engine was built with --capacity 30"):
        next(session.stream([7] * 30))
    state = session.prefill([[7] * 20])
    for _ in range(10):
        session.decode(state, [7])
    with pytest.raises(CladaError, match=r"the text has 31 tokens, .* built for 30: build it with --capacity 31$"):
        session.decode(state, [7])
    with pytest.raises(CladaError, match="holds token 512, which the model's vocabulary of 512 does not"):
        session.prefill([[512]])


def test_shapes_that_no_profile_takes_are_refused(copy, stood_in):
    """A record that promises more than the engine; and the session goes on after it."""
    engine = write_engine(copy)
    session = Session(engine)
    short = [dataclasses.replace(p, shapes=dict(p.shapes)) for p in stood_in[0]._record.profiles]
    low, usual, _ = short[0].shapes[graph_names.INPUT_IDS]
    short[0].shapes[graph_names.INPUT_IDS] = (low, usual, (1, 8))
    session = Session(write_engine(copy, profiles=short))
    with pytest.raises(CladaError, match=r"prefill profile does not take input_ids at shape \[1, 9\]: build it again"):
        session.prefill([[7] * 9])
    assert len(session.decode(session.prefill([[7] * 8]), [3])) == 1


def test_an_engine_of_all_positions_logits_is_refused(tmp_path, stood_in):
    path = tmp_path / "all" / "model.onnx"
    path.parent.mkdir()
    source = write_checkpoint(tmp_path / "hf", "llama", num_hidden_layers=1)
    export(path, str(source), ExportConfig(HALF_OF_NEURONS, calibration_tokens=600, all_logits=True))
    session = Session(write_engine(path))
    with pytest.raises(CladaError, match=r"gives logits of shape \[1, 5, 512\] where \[1, 1, 512\] is expected"):
        session.prefill([[7] * 5])


@pytest.mark.parametrize(
    "option",
    [
        {"device": "cuda"},
        {"device": "cpu"},
        {"threads": 1},
        {"kernels": "native"},
        {"weights": "bfloat16"},
        {"cuda_graph": True},
    ],
    ids=str,
)
def test_options_of_onnxruntime_are_refused(copy, option):
    ((name, value),) = option.items()
    message = f"{name} is {value!r}, which is for ONNX graphs, and .*model.engine runs on the GPU it was built for"
    with pytest.raises(CladaError, match=message):
        Session(write_engine(copy), **option)


# Real engines, up to where a GPU is needed.


NO_GPU = pytest.mark.skipif(not why_no_gpu(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def built(tiny_artifact, tmp_path_factory) -> Path:
    """An engine that TensorRT for RTX built for Ada's GPUs."""
    pytest.importorskip("tensorrt_rtx")
    folder = shutil.copytree(tiny_artifact.parent, tmp_path_factory.mktemp("built") / "artifact")
    options = ["--runtime", "tensorrt-rtx", "--target", "sm_89"]
    assert clada_main(["build", str(folder / "model.onnx"), *options]) == 0
    return folder / "model.engine"


@pytest.fixture
def engine(built, tmp_path) -> Path:
    """A real engine, which a test may change."""
    return Path(shutil.copytree(built.parent, tmp_path / "artifact")) / "model.engine"


def refused(engine: Path, **environment: str) -> str:
    """The one line that `clada run` says of an engine, in a process of its own, which must not be aborted."""
    command = [sys.executable, "-c", "import sys; from clada.runtime.cli import main; sys.exit(main())"]
    result = subprocess.run(
        [*command, "run", str(engine), "--prompt", "a"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert result.returncode == 1, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@NO_GPU
def test_a_machine_without_a_driver_is_named(engine):
    line = refused(engine)
    assert "model.engine needs an NVIDIA GPU: this machine has no NVIDIA driver (libcuda.so.1 is not found)" in line


def test_files_that_are_not_the_engine_s_are_refused(engine):
    content, record = engine.read_bytes(), record_path(engine)
    text, manifest = record.read_text(), engine.with_name(MANIFEST_NAME)
    engine.write_bytes(content[: len(content) // 2])
    assert "model.engine does not match its hash in model.engine.json: it was damaged" in refused(engine)
    engine.write_bytes(content)
    record.unlink()
    assert "model.engine has no model.engine.json beside it: it was not made by `clada build`" in refused(engine)
    record.write_text(text[: len(text) // 2])
    assert "model.engine.json: it is not valid JSON" in refused(engine)
    record.write_text(text)
    manifest.write_text(manifest.read_text() + " ")
    assert "clada.json does not match its hash in model.engine.json: the engine was built from" in refused(engine)
    manifest.unlink()
    assert "model.engine has no clada.json beside it: copy the files of its artifact there" in refused(engine)
    engine.unlink()
    assert "there is no file" in refused(engine)


def test_companions_are_checked_and_graphs_are_not_needed(engine):
    """An engine stands for the ONNX files, which need not go where it goes."""
    for path in engine.parent.glob("*.onnx*"):
        path.unlink()
    with pytest.raises(CladaError, match=r"model.engine needs an NVIDIA GPU" if why_no_gpu() else r"compute cap"):
        Session(engine)
    (engine.parent / "tokenizer.json").write_text("{}")
    with pytest.raises(CladaError, match=r"tokenizer.json does not match its hash in clada.json"):
        Session(engine)


def test_the_running_score_s_graph_builds():
    """TensorRT builds the graph as at run time, for another GPU than this machine has."""
    trt = pytest.importorskip("tensorrt_rtx")
    content = build_accumulation(trt, log_of(trt), MAX_BATCH, 256, 256 * MAX_BATCH, trt.ComputeCapability.SM89)
    assert content.nbytes > 1000
    with pytest.raises(CladaError, match=r"cannot build the graph of the running score: \S+"):
        build_accumulation(trt, log_of(trt), MAX_BATCH, 256, 255, trt.ComputeCapability.SM89)


def changed(engine: Path, **changes) -> Path:
    write_record(dataclasses.replace(read_record(engine), **changes), record_path(engine))
    return engine


def test_another_tensorrt_is_named(engine):
    line = refused(changed(engine, runtime_version="1.5.0.1"))
    assert "model.engine was built by tensorrt_rtx 1.5.0.1, and this is tensorrt_rtx 1." in line
    pytest.importorskip("tensorrt_rtx")
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        line = refused(changed(engine, runtime="tensorrt", runtime_version="10.9.0"))
        assert "model.engine needs tensorrt 10.9.0, which does not load here (No module named 'tensorrt')" in line
        assert "pip install 'clada[tensorrt]' 'tensorrt==10.9.0'" in line


def test_plugins_that_are_missing_or_of_another_release_are_named(engine, monkeypatch, tmp_path):
    line = refused(changed(engine, plugins=True, plugin_release="0.0.1"))
    assert "model.engine holds plugins of clada 0.0.1, and this is clada" in line
    changed(engine, plugin_release=version("clada"))
    monkeypatch.setattr("clada.plugins.tensorrt.library.__file__", str(tmp_path / "library.py"))
    with pytest.raises(CladaError, match=r"has no TensorRT plugins \(libclada_trt.so\)"):
        Session(engine)


# CUDA's driver, stood in for: what is called with what.


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> str:
    """The folder of a driver of one GPU of compute capability 9.0 with 64 MiB."""
    folder = tmp_path_factory.mktemp("driver")
    source = ROOT / "tests" / "support" / "cuda_driver_stand_in.c"
    subprocess.run(
        ["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True, timeout=60
    )
    return str(folder)


@NO_GPU
def test_another_gpu_is_named(engine, driver):
    line = refused(engine, LD_LIBRARY_PATH=driver)
    assert "model.engine was built for GPUs of compute capability 8.9, and this one (stand-in) has 9.0" in line
    assert line.endswith("build it with --target sm_90")


@NO_GPU
def test_a_driver_that_tensorrt_cannot_use_is_told(engine, driver):
    """The stand-in is of the right GPU, and TensorRT finds that it is too little of a driver."""
    line = refused(engine, LD_LIBRARY_PATH=driver, STAND_IN_IS_ADA="1")
    assert re.search(r"tensorrt_rtx [\d.]+ cannot read .*model.engine: \S+", line)


_MEMORY = """
import gc
import numpy as np
from clada.errors import CladaError
from clada.runtime.models.cuda_driver import Gpu
from clada.runtime.models.memory import Slab, read

gpu = Gpu()
assert (gpu.name, gpu.compute_capability) == ("stand-in", "9.0")
free = gpu.free_memory()
array = np.arange(24, dtype=np.float16).reshape(4, 6)
placed = gpu.place(array.T)
np.testing.assert_array_equal(read(placed), array.T)
placed.update_inplace(array.T + 1)
np.testing.assert_array_equal(read(placed), array.T + 1)
assert placed.data_ptr() > 1 << 32
room = gpu.empty(1000)
assert not read(room).any()
gpu.copy(room.data_ptr() + 256, placed.data_ptr(), array.nbytes)
content = read(room)
np.testing.assert_array_equal(content[256:256 + array.nbytes].view(np.float16).reshape(6, 4), array.T + 1)
assert not content[:256].any() and not content[256 + array.nbytes:].any()
slab = Slab({"a": ((3,), np.float32), "b": ((2, 2), np.int32)}, "cuda", gpu.place)
slab.write({"b": np.arange(4).reshape(2, 2)})
assert slab.read()["b"].tolist() == [[0, 1], [2, 3]]
table = gpu.place(np.arange(20, dtype=np.int32).reshape(4, 5))
rows = gpu.place(np.array([[70, 71], [80, 81], [90, 91]], np.int32))
gpu.copy_rows(table.data_ptr() + 4, 20, rows.data_ptr(), 8, 8, 3)
assert read(table).tolist() == [[0, 70, 71, 3, 4], [5, 80, 81, 8, 9], [10, 90, 91, 13, 14], list(range(15, 20))]
launch = gpu.capture(lambda: gpu.copy(table.data_ptr(), rows.data_ptr(), 24))
assert read(table)[0].tolist() == [0, 70, 71, 3, 4]
launch()
assert read(table)[0].tolist() == [70, 71, 80, 81, 90]
gpu.clear(table.data_ptr(), 8)
assert read(table)[0].tolist() == [0, 0, 80, 81, 90]
try:
    gpu.capture(lambda: gpu.place(1))
except AttributeError:
    gpu.capture(lambda: gpu.copy(table.data_ptr(), rows.data_ptr(), 24))
del placed, room, slab, table, rows, launch
gc.collect()
assert gpu.free_memory() == free
for size in (65 << 20, 3 << 30):
    try:
        gpu.empty(size)
    except CladaError as error:
        print(error)
try:
    gpu.allocate(0)
except CladaError as error:
    print(error)
"""


@NO_GPU
def test_memory_of_the_gpu(driver):
    """Copied bytes arrive, dropped memory is freed, and the error for a full memory names the size."""
    result = subprocess.run(
        [sys.executable, "-c", _MEMORY],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"LD_LIBRARY_PATH": driver},
    )
    assert result.returncode == 0, result.stderr
    full = "the GPU's memory is full: {} were asked for and 64.0 MiB are free: take fewer texts at once, or build an "
    full += "engine of a smaller capacity or in float16"
    failed = "the GPU failed: cuMemAlloc_v2 gives CUDA_ERROR_INVALID_VALUE (1)"
    assert result.stdout.splitlines() == [full.format("65.0 MiB"), full.format("3.0 GiB"), failed]


@pytest.mark.fault("results", "a decode step that fails in an engine", now="the state is as it was, and goes on")
@pytest.mark.parametrize("write", [write_engine, write_in_place_engine], ids=["copied", "in place"])
def test_a_failed_step_leaves_the_state_as_it_was(copy, stood_in, write, monkeypatch):
    """The token is unknown, or the run fails when it has written its outputs."""
    session = Session(write(copy))
    state, expected = (session.prefill([[5, 6, 7], [8, 9]]) for _ in range(2))
    run = EngineSession.run

    def fail(self, *given, **options):
        run(self, *given, **options)
        monkeypatch.setattr(EngineSession, "run", run)
        raise CladaError("TensorRT failed")

    for token in range(30, 34):
        with pytest.raises(CladaError, match="holds token -5"):
            session.decode(state, [-5, 5])
        with pytest.raises(CladaError, match="2 texts; 1 tokens"):
            session.decode(state, [5])
        monkeypatch.setattr(EngineSession, "run", fail)
        with pytest.raises(CladaError, match="TensorRT failed"):
            session.decode(state, [7, 7])
        assert session.decode(state, [token] * 2) == session.decode(expected, [token] * 2)
        np.testing.assert_array_equal(state.logits, expected.logits)
