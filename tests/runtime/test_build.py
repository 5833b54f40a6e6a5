"""Engines that TensorRT for RTX builds of exported models, on a machine with no GPU, and their records."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
import torch

from clada.contract.artifact import CONFIG_NAME
from clada.contract.engine_record import COPIED, IN_PLACE, PREFILL, read_record, record_path, write_record
from clada.contract.files import file_hash, write
from clada.contract.manifest import MANIFEST_NAME
from clada.contract.onnx_wire import (
    Constant,
    Node,
    constants_of,
    external_files,
    inputs_of,
    nodes_of,
    opset_of,
    without_functions,
)
from clada.contract.sealed_json import SEAL, sealed
from clada.errors import CladaError
from clada.exporter.graph import trace as tracing
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.patch import sparsify
from clada.ops import DOMAIN, LOAD_SIGNAL, VERSION
from clada.runtime.cli import main
from clada.runtime.trt import package
from clada.runtime.trt.building import build
from clada.runtime.trt.building.build import BuildConfig, build_engine, check_engine
from clada.runtime.trt.building.imported_ops import check_imported
from clada.runtime.trt.building.kv_cache import cut_cache, window_of
from clada.runtime.trt.building.progress import progress_monitor
from tests.exporter.test_trace import LOAD_MAP
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model
from tests.support.exhaustive import exhaustive, few
from tests.support.manifests import describe_graph, vouch_for
from tests.support.thresholds import uniform

TARGETS = ("sm_86", "sm_89", "sm_120")
CAPABILITIES = ("8.6", "8.9", "12.0")


@pytest.fixture(scope="module")
def artifact(tiny_artifact, tiny_half_artifact, tmp_path_factory):
    """A function to the ONNX file of an artifact of any family, type and opset.

    Those that no other test has are calibrated on nothing.
    """
    whole = {torch.float32: tiny_artifact, torch.float16: tiny_half_artifact}

    @functools.cache
    def make(family: str, dtype: torch.dtype, opset: int) -> Path:
        folder = tmp_path_factory.mktemp("engine")
        shutil.copytree(whole[dtype].parent, folder, dirs_exist_ok=True)
        if (family, opset) == ("llama", tracing.DEFAULT_OPSET):
            return folder / "model.onnx"
        model = random_model(family)
        sparsify(model)
        calibrated = Calibrated(uniform(model, 0.1), load_map=LOAD_MAP)
        traced = tracing.trace(model.to(dtype), calibrated, opset=opset)
        tracing.save(traced, folder / "model.onnx")
        (folder / CONFIG_NAME).write_text(model.config.to_json_string())
        told = {"family": family, "dtype": str(dtype).removeprefix("torch."), "opset": opset}
        op = next(node.op_type for node in traced.graph if node.op_type.startswith("Sparse"))
        describe_graph(folder, LOAD_MAP, told, ops=dict.fromkeys([op, LOAD_SIGNAL.name], VERSION))
        return folder / "model.onnx"

    def of(family: str = "llama", dtype: torch.dtype = torch.float32, opset: int = tracing.DEFAULT_OPSET) -> Path:
        return make(family, dtype, opset)

    return of


@pytest.fixture
def copy(tiny_artifact, tmp_path) -> Path:
    """The ONNX file of a tiny Llama, which a test may change."""
    shutil.copytree(tiny_artifact.parent, tmp_path / "copy")
    return tmp_path / "copy" / "model.onnx"


def built(model: Path, *options) -> Path:
    """Build beside the model, and check that nothing but the engine and its record is new there."""
    before = set(model.parent.iterdir())
    assert main(["build", str(model), *map(str, options)]) == 0
    engine = model.with_suffix(".engine")
    assert set(model.parent.iterdir()) - before <= {engine, record_path(engine)}
    return engine


def fails(capsys, model: Path, *options) -> str:
    """The one line that a build says when it fails, with nothing written."""
    before = set(model.parent.rglob("*"))
    assert main(["build", str(model), *map(str, options)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert set(model.parent.rglob("*")) == before
    return lines[0]


def parsed(model: Path, content: bytes):
    """The network that the real parser makes of a graph."""
    log = package.log_of(tensorrt_rtx)
    builder = tensorrt_rtx.Builder(log)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, log)
    assert parser.parse(content, str(model))
    return builder, network


@pytest.mark.parametrize(("target", "capability"), few(zip(TARGETS, CAPABILITIES, strict=True), [("sm_89", "8.9")]))
def test_demo_model_builds_for_every_target(demo_artifact, capsys, target, capability):
    engine = built(demo_artifact, "--target", target, "--capacity", 256)
    record = read_record(engine)
    assert record.compute_capability == [capability]
    assert record.dtype == "float32"
    assert engine.stat().st_size > demo_artifact.with_suffix(".onnx.data").stat().st_size / 2
    assert "function bodies" in capsys.readouterr().out


def test_float16_builds_for_every_target_at_once(artifact):
    record = read_record(built(artifact(dtype=torch.float16), "--target", *TARGETS))
    assert record.dtype == "float16"
    assert record.compute_capability == list(CAPABILITIES)


@pytest.mark.parametrize("family", few(FAMILIES, ["llama", "mistral"]))
def test_every_family_builds(artifact, family):
    record = read_record(built(artifact(family), "--target", "sm_89"))
    assert len(record.profiles[0].shapes) == 4 + 3 * LAYERS
    # Theirs are windows of so many tokens or of fewer.
    assert record.kv_cache == (COPIED if family == "mistral" else IN_PLACE)


@exhaustive
@pytest.mark.parametrize("opset", [tracing.MINIMUM_OPSET, tracing.MAXIMUM_OPSET])
def test_every_opset_builds(artifact, opset):
    model = artifact(opset=opset)
    assert opset_of(model.read_bytes()) == opset
    built(model, "--target", "sm_89")


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": 4096, "use_sliding_window": True}, 4096),
    ],
)
def test_windows_of_configurations(config, window):
    assert window_of(config) == window


def test_a_window_longer_than_a_text_is_none(copy):
    _builder, network = parsed(copy, copy.read_bytes())
    names = [network.get_output(index).name for index in range(network.num_outputs)]
    assert cut_cache(tensorrt_rtx, network, 64, 64)[0] == COPIED
    assert [network.get_output(index).name for index in range(network.num_outputs)] == names
    assert cut_cache(tensorrt_rtx, network, 65, 64)[0] == IN_PLACE
    outputs = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    assert sorted(outputs) == sorted(names)
    # A step's own, as many as its ids.
    assert cut_cache(tensorrt_rtx, network, None, 64)[0] == COPIED


def test_record_says_what_was_asked_for(copy):
    engine = built(
        copy, "--target", "sm_89", "--target", "sm_120", "--max-batch", 3, "--max-prompt", 20, "--capacity", 64
    )
    record = read_record(engine)
    assert (record.runtime, record.runtime_version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert record.compute_capability == ["8.9", "12.0"]
    assert (record.max_batch, record.max_prompt, record.capacity) == (3, 20, 64)
    assert (record.plugins, record.kv_cache) == (False, "in_place")
    assert record.sha256 == file_hash(engine)
    assert record.manifest_sha256 == file_hash(copy.parent / MANIFEST_NAME)
    prefill, decode = record.profiles
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.shapes["input_ids"] == ((1, 1), (3, 10), (3, 20))
    assert prefill.shapes["past_key_values.1.value"] == ((1, 2, 0, 8), (3, 2, 0, 8), (3, 2, 0, 8))
    assert decode.shapes["input_ids"] == ((1, 1), (3, 1), (3, 1))
    assert decode.shapes["attention_mask"] == ((1, 2), (3, 33), (3, 65))
    assert decode.shapes["past_key_values.0.key"] == ((1, 2, 1, 8), (3, 2, 32, 8), (3, 2, 64, 8))
    assert decode.shapes["past_logits"] == ((1, VOCABULARY), (3, VOCABULARY), (3, VOCABULARY))
    assert decode.shapes["pool.0"] == ((1, NEURONS), (3, NEURONS), (3, NEURONS))


def test_defaults_are_of_the_model_and_of_every_gpu_but_turing(copy):
    record = read_record(built(copy))
    assert (record.max_batch, record.max_prompt, record.capacity) == (1, 128, 128)
    assert record.compute_capability[:4] == ["8.0", "8.6", "8.9", "12.0"]


def test_an_engine_is_replaced_whole(copy, capsys):
    engine = built(copy, "--target", "sm_89", "--capacity", 32)
    first = read_record(engine)
    assert read_record(built(copy, "--target", "sm_89", "--capacity", 48)).capacity == 48
    capsys.readouterr()
    # The record of the first does not pass for the second's.
    write_record(first, record_path(engine))
    with pytest.raises(CladaError, match=r"model.engine does not match its hash in model.engine.json.*build it again"):
        read_record(engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda engine: engine.unlink(), "there is no file"),
        (lambda engine: record_path(engine).unlink(), "was not made by `clada build`"),
        (lambda engine: record_path(engine).write_text("{"), "is not valid JSON"),
        (lambda engine: record_path(engine).write_text("[]"), "it holds no JSON object"),
        (lambda engine: record_path(engine).write_text("{}"), "it has no format_version"),
        (lambda engine: record_path(engine).write_text("[" * 100000), "is nested too deeply"),
        (lambda engine: edit(engine, format_version=9), "has format version 9"),
        (lambda engine: edit(engine, format_version=1), "an older release of clada: build the engine again"),
        (lambda engine: unsealed_edit(engine), "does not match the hash that it ends in"),
        (lambda engine: edit(engine, capacity=0), r"is damaged \(capacity is 0\)"),
        (lambda engine: edit(engine, max_prompt=10**40), "it holds a number of 41 digits"),
        (lambda engine: edit(engine, dtype="int3"), r"is damaged \(dtype is 'int3'\)"),
        (lambda engine: edit(engine, profiles=[]), "is damaged"),
        (lambda engine: edit(engine, max_batch="1"), r"is damaged \(max_batch is '1'\)"),
        (lambda engine: edit(engine, runtime="cudnn"), r"is damaged \(runtime is 'cudnn'\)"),
        (lambda engine: edit(engine, surprise=1), "is damaged"),
        (lambda engine: edit(engine, manifest="../clada.json"), "is damaged"),
        (lambda engine: engine.write_bytes(b"engine."), "model.engine does not match its hash"),
        (lambda engine: (engine.parent / MANIFEST_NAME).unlink(), "copy the files of its artifact there"),
        (lambda engine: (engine.parent / MANIFEST_NAME).write_text("{}"), "built from another artifact"),
    ],
)
def test_records_that_do_not_fit(tmp_path, change, message):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    (tmp_path / MANIFEST_NAME).write_text("{ }")
    profile = {"shapes": {"input_ids": [[1, 1], [1, 2], [1, 4]]}}
    content = {
        "runtime": "tensorrt",
        "runtime_version": "11.1",
        "compute_capability": ["8.9"],
        "plugins": True,
        "plugin_release": "0.1.0",
        "sha256": file_hash(engine),
        "manifest": MANIFEST_NAME,
        "manifest_sha256": file_hash(tmp_path / MANIFEST_NAME),
        "dtype": "float16",
        "max_batch": 1,
        "max_prompt": 4,
        "capacity": 8,
        "kv_cache": "copied",
        "profiles": [{"name": "prefill", **profile}, {"name": "decode", **profile}],
        "format_version": 2,
    }
    record_path(engine).write_bytes(sealed(content))
    record = read_record(engine)
    assert record.profiles[0].shapes == {"input_ids": ((1, 1), (1, 2), (1, 4))}
    write_record(record, record_path(engine))
    assert read_record(engine) == record
    change(engine)
    with pytest.raises(CladaError, match=message):
        read_record(engine)


def edit(engine: Path, **values) -> None:
    path = record_path(engine)
    content = json.loads(path.read_text()) | values
    del content[SEAL]
    path.write_bytes(sealed(content))


def unsealed_edit(engine: Path) -> None:
    """A change that the record's own hash does not tell of."""
    path = record_path(engine)
    path.write_text(path.read_text().replace('"max_batch": 1', '"max_batch": 9'))


def test_nodes_and_opset_are_read_as_onnx_reads_them(artifact):
    for family, opset in (("llama", tracing.MAXIMUM_OPSET), ("opt", tracing.DEFAULT_OPSET)):
        path = artifact(family, opset=opset)
        model = onnx.load(path, load_external_data=False)
        content = path.read_bytes()
        ours = [node for node in model.graph.node if node.domain == DOMAIN]
        floats = [tuple((a.name, a.f) for a in node.attribute if a.type == onnx.AttributeProto.FLOAT) for node in ours]
        expected = [
            Node(node.name, node.op_type, tuple(node.input), tuple(node.output), numbers)
            for node, numbers in zip(ours, floats, strict=True)
        ]
        assert [numbers for numbers in floats if numbers] == [(("surprisal_weight", 0.5),)]
        assert nodes_of(content, DOMAIN) == expected
        assert len(expected) == LAYERS + 1
        assert opset_of(content) == opset
        constants = constants_of(content)
        assert list(constants) == [tensor.name for tensor in model.graph.initializer]
        for tensor in model.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            numbers = [int(place.get(key, 0)) for key in ("offset", "length")]
            assert constants[tensor.name] == Constant(
                tensor.raw_data, place.get("location", ""), *numbers, tensor.data_type, tuple(tensor.dims)
            )
        inputs = {
            value.name: tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
            for value in model.graph.input
        }
        assert inputs_of(content) == inputs
        assert external_files(content) == {"model.onnx.data"}
        assert model.functions
        model.ClearField("functions")
        assert onnx.load_from_string(without_functions(content)) == model


def test_a_body_where_a_plugin_was_asked_for_is_found(tiny_artifact):
    content = tiny_artifact.read_bytes()
    nodes = nodes_of(content, DOMAIN)
    _builder, network = parsed(tiny_artifact, content)
    line = check_imported(tensorrt_rtx, network, nodes, plugins=False)
    assert line == f"1 LoadSignal, {LAYERS} SparseGatedFFN: all imported as function bodies"
    with pytest.raises(CladaError, match="as its function body, and a plugin was asked for"):
        check_imported(tensorrt_rtx, network, nodes, plugins=True)
    lost = [*nodes, Node("lost", "SparseGatedFFN", (), ("nowhere",))]
    with pytest.raises(CladaError, match="node lost as neither plugin nor body: nothing in the network gives nowhere"):
        check_imported(tensorrt_rtx, network, lost, plugins=False)


class StandInLayer:
    """A layer that gives one tensor: no library here makes a network with plugins without a driver."""

    num_outputs = 1

    def __init__(self, kind, output: str):
        self.type = kind
        self.get_output = lambda _: types.SimpleNamespace(name=output)


def test_one_body_among_plugins_is_found():
    kinds = tensorrt_rtx.LayerType
    nodes = [Node("first", "SparseFFN", (), ("a",)), Node("second", "SparseFFN", (), ("b",))]

    def network(*layers):
        return types.SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)

    plugin, body = StandInLayer(kinds.PLUGIN_V3, "a"), StandInLayer(kinds.MATRIX_MULTIPLY, "b")
    both = network(plugin, StandInLayer(kinds.PLUGIN_V3, "b"))
    assert check_imported(tensorrt_rtx, both, nodes, plugins=True) == "2 SparseFFN: all imported as plugins"
    with pytest.raises(CladaError, match="node second as its function body"):
        check_imported(tensorrt_rtx, network(plugin, body), nodes, plugins=True)
    with pytest.raises(CladaError, match="node first as a plugin, and its function body was asked for"):
        check_imported(tensorrt_rtx, network(plugin, body), nodes, plugins=False)


def test_without_its_functions_a_graph_needs_plugins(tiny_artifact):
    # As where TensorRT has a plugin library that registers nothing.
    builder = tensorrt_rtx.Builder(package.log_of(tensorrt_rtx))
    with pytest.raises(CladaError, match=r"of opset 20: node node_load_signal\w* \(LoadSignal\): "):
        build._parse(tensorrt_rtx, builder, tiny_artifact, plugins=True)


def test_plugins_are_refused_where_there_are_none(copy, capsys):
    assert "TensorRT for RTX takes no plugins" in fails(capsys, copy, "--kernels", "plugins")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "sm_90"), "target is sm_90; tensorrt_rtx 1.7"),
        (("--target", "sm_89", "89"), "builds for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121: take one of those"),
        (("--capacity", "129"), "capacity is 129; the model's context is 128"),
        (("--capacity", "1"), "capacity is 1; it must be 2 or more"),
        (("--capacity", "32", "--max-prompt", "33"), "max_prompt is 33 and capacity 32"),
        (("--max-prompt", "0"), "max_prompt is 0; it must be 1 or more"),
        (("--max-batch", "0"), "max_batch is 0; it must be 1 or more"),
        (("-o", "engine.plan"), "the output is engine.plan; an engine's name ends in .engine"),
        (("-o", "nowhere/model.engine"), "there is no folder nowhere: make it"),
    ],
)
def test_options_that_cannot_be(copy, capsys, options, message):
    assert message in fails(capsys, copy, *options)


def test_outputs_that_cannot_be(copy, tmp_path, capsys):
    assert "would not have clada.json" in fails(capsys, copy, "-o", tmp_path / "model.engine")
    (copy.parent / "folder.engine").mkdir()
    assert "it is a folder" in fails(capsys, copy, "-o", copy.parent / "folder.engine")


def test_inputs_that_cannot_be(copy, tmp_path, capsys):
    assert "there is no file" in fails(capsys, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    assert "was not made by clada-export" in fails(capsys, tmp_path / "text.onnx")
    copy.write_bytes(copy.read_bytes()[:-1])
    assert "does not match its hash" in fails(capsys, copy)


def rewritten(copy: Path, change) -> None:
    """Change a graph, and let the manifest say so."""
    model = onnx.load(copy, load_external_data=False)
    change(model)
    onnx.save(model, copy)
    vouch_for(copy)


def test_an_op_that_the_parser_does_not_know(copy, capsys):
    def newer(model):
        model.opset_import[0].version = 30
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type, node.name = "SoftmaxOfTomorrow", "odd"

    rewritten(copy, newer)
    message = fails(capsys, copy)
    assert "of opset 30: node odd (SoftmaxOfTomorrow)" in message
    assert "another --opset" in message


def test_a_build_that_fails(copy, capsys):
    def impossible(model):
        # The product of two matrices that fit for no past at all.
        model.graph.input.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [3, 4]))
        model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["batch_size", 1]))
        model.graph.node.append(onnx.helper.make_node("MatMul", ["a", "b"], ["c"], name="misfit"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [3, 1]))

    rewritten(copy, impossible)
    assert "cannot build the engine: " in fails(capsys, copy)


def test_memory_that_is_too_small_says_what_to_lower():
    errors = ["[x.cpp::1] Error Code 2: OutOfMemory (Requested size was 68719476736 bytes.)"]
    assert "lower --max-prompt, --capacity or --max-batch" in build._build_error(tensorrt_rtx, errors)
    assert "lower" not in build._build_error(tensorrt_rtx, ["something else"])


def test_a_full_disk(copy):
    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

    content = copy.read_bytes()
    builder, network = parsed(copy, content)
    config = builder.create_builder_config()
    limits = build.limits_for(128, 1, 8, 16)
    build.add_profiles(builder, config, build.profiles_for(network, limits, COPIED))
    with pytest.raises(OSError, match="No space left"):
        build._serialize(tensorrt_rtx, builder, network, config, Full())


def test_no_runtime_package(copy, capsys, monkeypatch):
    for name in package.MODULES.values():
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'clada[tensorrt-rtx]'" in fails(capsys, copy, "--runtime", "tensorrt-rtx")
    assert "pip install 'clada[tensorrt]'" in fails(capsys, copy, "--runtime", "tensorrt")
    monkeypatch.setattr(package, "find_spec", lambda _: None)
    message = fails(capsys, copy)
    assert "neither tensorrt nor tensorrt_rtx is installed" in message


@pytest.fixture
def tensorrt(monkeypatch, tmp_path):
    """TensorRT for RTX in the place of TensorRT, which cannot be had here: the API is the same."""
    monkeypatch.setattr(tensorrt_rtx, "__version__", "10.13.2")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    monkeypatch.setattr(package, "compute_capability", lambda: "8.7")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tensorrt_rtx


def test_tensorrt_builds_for_the_gpu_of_the_machine(tensorrt, copy, capsys, tmp_path):
    timings = tmp_path / "cache" / "clada" / "tensorrt-10.13.2-sm_87.timing"
    record = read_record(built(copy, "--kernels", "bodies", "--capacity", "32"))
    assert (record.runtime, record.compute_capability) == ("tensorrt", ["8.7"])
    assert timings.is_file()
    # What was kept is taken again, and what is not a cache is replaced.
    for content in (timings.read_bytes(), b"damaged"):
        timings.write_bytes(content)
        built(copy, "--runtime", "tensorrt", "--kernels", "bodies", "--capacity", "32")
        assert len(timings.read_bytes()) > len(b"damaged")
    assert list(timings.parent.iterdir()) == [timings]


def test_timings_that_cannot_be_kept_are_no_failure(tensorrt, copy, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    with pytest.warns(UserWarning, match="the next build will take as long: cannot write"):
        build_engine(copy, None, BuildConfig(kernels="bodies", capacity=32), lambda _: None)


def test_tensorrt_without_plugins(tensorrt, copy, capsys, monkeypatch):
    def missing():
        raise CladaError("this installation of clada has no TensorRT plugins")

    monkeypatch.setattr(package, "library_path", missing)
    assert "has no TensorRT plugins" in fails(capsys, copy, "--kernels", "plugins")
    with pytest.warns(UserWarning, match="the engine is of function bodies, at dense speed: this installation"):
        assert not package.choose_plugins("tensorrt", tensorrt, "auto")


def test_a_plugin_library_that_is_none(tensorrt, copy, capsys, monkeypatch, tmp_path):
    (tmp_path / "libclada_trt.so").write_text("no library")
    monkeypatch.setattr(package, "library_path", lambda: tmp_path / "libclada_trt.so")
    monkeypatch.setattr("clada.plugins.tensorrt.library.library_path", lambda: tmp_path / "libclada_trt.so")
    # Not replaced by the bodies: it is there to be used.
    assert "the TensorRT plugins cannot be used" in fails(capsys, copy)


def test_tensorrt_takes_no_target_and_needs_a_gpu(tensorrt, copy, capsys, monkeypatch):
    assert "leave --target out" in fails(capsys, copy, "--target", "sm_89")
    monkeypatch.setattr(package, "compute_capability", lambda: None)
    assert "the driver finds none here" in fails(capsys, copy)
    monkeypatch.setattr(tensorrt_rtx, "__version__", "8.6.1")
    assert "tensorrt is 8.6.1; clada builds with 10.0 or newer" in fails(capsys, copy)


def test_an_engine_that_is_not_what_was_asked_for(tiny_artifact):
    _builder, network = parsed(tiny_artifact, tiny_artifact.read_bytes())
    profiles = build.profiles_for(network, build.limits_for(128, 1, 8, 16), COPIED)
    shapes = {name: dict(enumerate(profile.shapes[name] for profile in profiles)) for name in profiles[0].shapes}

    # What reads an engine needs a GPU.
    mode = tensorrt_rtx.TensorIOMode
    names = [*shapes, "logits"]
    engine = types.SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=names.__getitem__,
        get_tensor_mode=lambda name: mode.INPUT if name in shapes else mode.OUTPUT,
        get_tensor_profile_shape=lambda name, index: [list(shape) for shape in shapes[name][index]],
    )
    check_engine(tensorrt_rtx, engine, profiles)
    assert profiles[0].name == PREFILL
    shapes["input_ids"][1] = ((1, 1), (1, 1), (1, 2))
    with pytest.raises(CladaError, match="takes input_ids as"):
        check_engine(tensorrt_rtx, engine, profiles)
    del shapes["input_ids"]
    with pytest.raises(CladaError, match="other inputs than were asked for: input_ids"):
        check_engine(tensorrt_rtx, engine, profiles)


def test_progress_goes_on_until_it_is_stopped():
    progress = progress_monitor(tensorrt_rtx)
    progress.phase_start("outer", None, 4)
    progress.phase_start("inner", "outer", 2)
    assert progress.step_complete("inner", 0)
    progress.phase_finish("inner")
    progress.interrupted = True
    assert not progress.step_complete("outer", 0)


def test_an_interrupted_build_leaves_nothing(copy):
    before = set(copy.parent.iterdir())
    code = f"import sys; from clada.runtime.cli import main; sys.exit(main(['build', {str(copy)!r}]))"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if "builds for" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert set(copy.parent.iterdir()) == before


def test_an_interruption_as_soon_as_a_file_is_there_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(descriptor: int, close=os.close) -> None:
        close(descriptor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "close", interrupted)
        write(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_build_needs_neither_torch_nor_the_exporter(copy):
    code = f"""
import sys
for name in ("torch", "transformers", "onnx", "onnxscript"):
    sys.modules[name] = None
from clada.runtime.cli import main
sys.exit(main(["build", {str(copy)!r}, "--target", "sm_89"]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert read_record(copy.with_suffix(".engine")).compute_capability == ["8.9"]
