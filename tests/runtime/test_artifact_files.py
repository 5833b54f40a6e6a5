"""Files of an artifact that are read: exactly those that were checked, whatever lies in the folder."""

import dataclasses
import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from clada.contract import manifest
from clada.contract.artifact import open_artifact
from clada.contract.calibrated_values import check_graph
from clada.contract.manifest import MANIFEST_NAME, AnticipationSection
from clada.errors import CladaError
from clada.exporter.staging import staged
from clada.ops import LOAD_SIGNAL, graph_names
from clada.runtime import Session
from clada.runtime.cli import main as clada_main
from tests.conftest import HELDOUT
from tests.support.checkpoints import VOCABULARY
from tests.support.links import LAYOUTS
from tests.support.manifests import vouch_for


@pytest.fixture
def artifact(tiny_artifact, tmp_path) -> Path:
    """A copy of the tiny artifact that a test may change."""
    shutil.copytree(tiny_artifact.parent, tmp_path / "artifact")
    return tmp_path / "artifact" / "model.onnx"


@pytest.fixture
def linked(tiny_artifact, tmp_path):
    """A function to the tiny artifact as a layout has it."""
    return lambda layout: LAYOUTS[layout](tiny_artifact.parent, tmp_path / "linked") / "model.onnx"


@pytest.mark.fault("files", "artifacts behind symbolic and hard links", now="run, inspect, verify and eval work")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_verb_works_behind_links(linked, tiny_artifact, checkpoint, tmp_path, capsys, layout):
    path, outputs = linked(layout), []
    for model in (path, tiny_artifact):
        capsys.readouterr()
        assert clada_main(["run", str(model), "--prompt", "def f(", "--max-new-tokens", "4"]) == 0
        assert clada_main(["inspect", str(model)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert clada_main(["verify", str(path), "--model", str(checkpoint("llama"))]) == 0
    result = tmp_path / "result.json"
    sizes = ["--sequences", "2", "--prompt-tokens", "16", "--decode-tokens", "8", "--generation-tokens", "2"]
    options = ["--reference", str(checkpoint("llama")), "--data", str(HELDOUT), "--json", str(result), *sizes]
    assert clada_main(["eval", str(path), *options]) == 0
    page = [
        "report",
        str(tmp_path / "report.html"),
        "--results",
        str(result),
        "--model",
        str(path),
        "--prompt",
        "def f(",
    ]
    assert clada_main(page) == 0


@pytest.mark.fault("files", "a tokenizer that is a link out of the folder", now="what it leads to must have its hash")
def test_what_a_link_leads_to_is_hashed(artifact, tmp_path):
    """The content that is read is hashed, so that a cache of links works and no other file is taken."""
    tokenizer = artifact.with_name("tokenizer.json")
    outside = tmp_path / "outside.json"
    tokenizer.rename(outside)
    tokenizer.symlink_to(outside)
    Session(artifact)
    outside.write_text(outside.read_text().replace('"BPE"', '"BPE" '))
    with pytest.raises(CladaError, match=r"tokenizer\.json does not match its hash"):
        Session(artifact)
    outside.unlink()
    with pytest.raises(CladaError, match="the artifact lacks"):
        Session(artifact)


@pytest.mark.fault("files", "files that the manifest does not list", now="never read: as if they were not there")
def test_files_that_are_not_listed_are_not_read(artifact, capsys):
    artifact.with_name("chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(CladaError, match="this model has no chat template"):
        Session(artifact).encode_chat([{"role": "user", "content": "x"}])
    vouch_for(artifact.with_name("chat_template.jinja"))
    assert Session(artifact).encode_chat([{"role": "user", "content": "x"}])
    # Changed after the session was made, it is not read either.
    session = Session(artifact)
    artifact.with_name("chat_template.jinja").write_text("{{ 'other' }}")
    with pytest.raises(CladaError, match=r"chat_template\.jinja does not match its hash"):
        session.encode_chat([{"role": "user", "content": "x"}])


@pytest.mark.fault("files", "graph or weights changed between Session() and the first batch", now="refused in one line")
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_graph_that_is_loaded_late_is_checked_then(artifact, name):
    session = Session(artifact)
    session.generate("one text", None)
    path = artifact.with_name(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    # A new file, as an export writes it: what is loaded already may be mapped from the old one.
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CladaError, match=f"{name} does not match its hash"):
        session.generate(["two", "texts"])


def test_an_artifact_replaced_under_a_session_is_not_mixed_with_it(artifact):
    """The graph for one text is of the old one; that for several would be of the new."""
    session = Session(artifact)
    session.generate("one text")
    old = {path.name: path.read_bytes() for path in artifact.parent.iterdir()}
    with staged(artifact, True) as folder:
        for name, content in old.items():
            (folder / name).write_bytes(content)
        values = onnx.load(folder / "model.onnx", load_external_data=False)
        values.producer_version = "another"
        (folder / "model.onnx").write_bytes(values.SerializeToString())
        vouch_for(folder / "model.onnx")
    with pytest.raises(CladaError, match=r"model\.onnx does not match its hash"):
        session.generate(["two", "texts"])
    assert Session(artifact).generate(["two", "texts"])


@pytest.mark.fault("files", "files that cannot be read", now="one line that names the file and the reason")
@pytest.mark.parametrize(
    "name", [MANIFEST_NAME, "model.onnx", "model.onnx.data", "tokenizer.json", "pools.safetensors", "config.json"]
)
def test_a_file_that_cannot_be_read_is_named(artifact, capsys, name):
    path = artifact.with_name(name)
    path.chmod(0)
    capsys.readouterr()
    # Root may read any file, but not this one, whose first page is mapped nowhere.
    if os.geteuid() == 0:
        path.unlink()
        path.symlink_to("/proc/self/mem")
    assert clada_main(["inspect", str(artifact)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: cannot read {path}: ")


def test_a_very_long_path_is_one_line(capsys):
    for path in ("x" * 5000 + "/model.onnx", "/".join(["x" * 200] * 50) + "/model.onnx", "a\0b.onnx"):
        assert clada_main(["inspect", path]) == 1
        assert capsys.readouterr().err.startswith("error: ")


def with_graph(artifact: Path, change) -> None:
    """Change the ONNX file, with a manifest that vouches for it."""
    model = onnx.load(artifact, load_external_data=False)
    change(model)
    artifact.write_bytes(model.SerializeToString())
    vouch_for(artifact)


def replaced(model: onnx.ModelProto, name: str, values: object) -> None:
    """Give an initializer other values, of float32, in the ONNX file itself; one that is not there is added."""
    model.graph.initializer.extend([onnx.TensorProto()] if all(t.name != name for t in model.graph.initializer) else [])
    tensor = next(t for t in model.graph.initializer if t.name in (name, ""))
    array = values if isinstance(values, np.ndarray) else np.array(values, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def changed(values: np.ndarray, at: int, value: float) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


NAN, INF = float("nan"), float("inf")
THRESHOLD = np.full(88, 0.5, np.float32)
KNOTS = np.linspace(0, 1, 9, dtype=np.float32)
PROBE = dict(zip(graph_names.ANTICIPATION, graph_names.anticipation(1), strict=True))
GOOD_PROBE = {
    PROBE["weight"]: np.zeros(48, np.float32),
    PROBE["load_weight"]: np.float32(0).reshape(()),
    PROBE["bias"]: np.float32(0).reshape(()),
    PROBE["knots"]: np.float32([0, 1]),
    PROBE["factors"]: np.float32([1, 1]),
}
BAD_VALUES = {
    "threshold of NaN": ({"threshold.1": changed(THRESHOLD, 5, NAN)}, "threshold.1 that holds nan"),
    "infinite threshold": ({"threshold.1": changed(THRESHOLD, 5, INF)}, "threshold.1 that holds inf"),
    "negative threshold": ({"threshold.1": changed(THRESHOLD, 5, -1)}, "threshold.1 that holds -1, below 0"),
    "too few thresholds": ({"threshold.1": THRESHOLD[:80]}, "threshold.1 of sizes [80], and [88] is expected"),
    "no thresholds": ({"threshold.1": THRESHOLD[:0]}, "threshold.1 of sizes [0]"),
    "one threshold": ({"threshold.1": THRESHOLD[0].reshape(())}, "threshold.1 of sizes []"),
    "thresholds of another type": ({"threshold.1": THRESHOLD.astype(np.float64)}, "is not float32"),
    "surprisal knots of NaN": ({"surprisal_knots": changed(KNOTS, 3, NAN)}, "surprisal_knots that holds nan"),
    "surprisal knots that fall": ({"surprisal_knots": KNOTS[::-1].copy()}, "surprisal_knots that does not rise"),
    "one entropy knot": ({"entropy_knots": KNOTS[:1]}, "entropy_knots of sizes [1], and ['2 or more'] is"),
    "no entropy knots": ({"entropy_knots": KNOTS[:0]}, "entropy_knots of sizes [0]"),
    "infinite entropy knot": ({"entropy_knots": changed(KNOTS, 8, INF)}, "entropy_knots that holds inf"),
    "scale knots of NaN": ({"scale_knots": [1, NAN]}, "scale_knots that holds nan, which is no finite number"),
    "scale knots that rise": ({"scale_knots": [0.5, 1]}, "scale_knots that rises"),
    "negative scale knots": ({"scale_knots": [1, -1]}, "scale_knots that holds -1, below 0"),
    "no scale knots": ({"scale_knots": KNOTS[:0]}, "scale_knots of sizes [0]"),
    "other scale knots": ({"scale_knots": [9, 8]}, "scale_knots that are not those of its manifest"),
    "reanalysis load of NaN": ({"reanalysis_load": NAN}, "reanalysis_load that holds nan"),
    "reanalysis load below 0": ({"reanalysis_load": -1}, "reanalysis_load that holds -1"),
    "another reanalysis load": ({"reanalysis_load": 0.125}, "reanalysis_load 0.125 that is not its manifest's"),
    "compensation of NaN": ({"compensation.0": np.full(48, NAN, np.float32)}, "compensation.0 that holds nan"),
    "narrow compensation": ({"compensation.0": np.zeros(40, np.float32)}, "compensation.0 of sizes [40]"),
    "token scale below 0": ({"token_scale": np.full(VOCABULARY, -1, np.float32)}, "token_scale that holds -1, below 0"),
    "short token scale": ({"token_scale": KNOTS}, "token_scale of sizes [9]"),
    "half a probe": ({PROBE["bias"]: 0.0}, f"lacks its {PROBE['weight']}"),
    "probe of NaN": (GOOD_PROBE | {PROBE["weight"]: np.full(48, NAN, np.float32)}, "weight that holds nan"),
    "probe whose knots fall": (GOOD_PROBE | {PROBE["knots"]: [1, 0]}, "knots that does not rise"),
    "probe whose factors rise": (GOOD_PROBE | {PROBE["factors"]: [1, 2]}, "factors that rises"),
    "a probe too many": (GOOD_PROBE, "weight that is of a probe that its manifest does not tell of"),
    "probe of too few factors": (GOOD_PROBE | {PROBE["factors"]: [1.0]}, "factors of sizes [1], and [2] is"),
}


@pytest.mark.fault("files", "calibrated values that make no sense, hashes right", now="named in one line when opened")
@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("name", ["model.onnx", "model.onnxruntime.onnx"])
def test_bad_calibrated_values_are_named(tiny_artifact, kind, name):
    changes, message = BAD_VALUES[kind]
    manifest = open_artifact(tiny_artifact).manifest
    model = onnx.load(tiny_artifact.with_name(name), load_external_data=False)
    for tensor, values in changes.items():
        replaced(model, tensor, values)
    data = tiny_artifact.with_name("model.onnx.data")
    with pytest.raises(CladaError) as error:
        check_graph(Path(name), model.SerializeToString(), data, manifest)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_good_calibrated_values_are_taken(tiny_artifact):
    """Neurons that add nothing have the largest threshold there is, and knots may be equal."""
    model = onnx.load(tiny_artifact, load_external_data=False)
    changes = GOOD_PROBE | {"token_scale": np.ones(VOCABULARY, np.float32), "surprisal_knots": np.zeros(9, np.float32)}
    for name, values in (changes | {"threshold.1": changed(THRESHOLD, 3, np.finfo(np.float32).max)}).items():
        replaced(model, name, values)
    manifest = open_artifact(tiny_artifact).manifest
    told = dataclasses.replace(manifest.calibration, anticipation=AnticipationSection(1, (1.0, 1.0), None))
    manifest = dataclasses.replace(manifest, calibration=told)
    check_graph(tiny_artifact, model.SerializeToString(), tiny_artifact.with_name("model.onnx.data"), manifest)


def test_bad_values_stop_every_reader(artifact, capsys):
    with_graph(artifact, lambda model: replaced(model, "threshold.0", changed(THRESHOLD, 0, NAN)))
    capsys.readouterr()
    for command in (["run", "--prompt", "x"], ["inspect"], ["verify", "--model", "nowhere"]):
        assert clada_main([command[0], str(artifact), *command[1:]]) == 1
        assert "model.onnx has threshold.0 that holds nan, which is no finite number" in capsys.readouterr().err


def node_of(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def other_weight(model):
    attribute = next(a for a in node_of(model, LOAD_SIGNAL.name).attribute if a.name == "surprisal_weight")
    attribute.f = 7.0


def threshold_of_another_name(model):
    model.graph.initializer.append(numpy_helper.from_array(changed(THRESHOLD, 0, NAN), "other"))
    node = node_of(model, "SparseGatedFFN")
    node.input[list(node.input).index("threshold.0")] = "other"


def computed_knots(model):
    node = node_of(model, LOAD_SIGNAL.name)
    node.input[list(node.input).index("scale_knots")] = "computed"


def one_layer_more(model):
    model.graph.node.append(node_of(model, "SparseGatedFFN"))


def op_of_another_kind(model):
    node_of(model, "SparseGatedFFN").op_type = "SparseFFN"


def no_load_signal(model):
    model.graph.node.remove(node_of(model, LOAD_SIGNAL.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weight, "has surprisal_weight 7.0 that holds 7, above 1"),
        (threshold_of_another_name, "has nodes of SparseGatedFFN without thresholds of their own"),
        (computed_knots, "has a load signal that does not read its scale_knots"),
        (one_layer_more, "has the ops {"),
        (op_of_another_kind, "has the ops {"),
        (no_load_signal, "has the ops {"),
    ],
)
def test_what_is_checked_is_what_the_ops_read(tiny_artifact, change, message):
    model = onnx.load(tiny_artifact, load_external_data=False)
    change(model)
    manifest, data = open_artifact(tiny_artifact).manifest, tiny_artifact.with_name("model.onnx.data")
    with pytest.raises(CladaError) as error:
        check_graph(tiny_artifact, model.SerializeToString(), data, manifest)
    assert message in str(error.value)


def elsewhere(location: str) -> onnx.TensorProto:
    """A tensor in another file."""
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_subgraph(tensor):
    graph_ = helper.make_graph([], "inner", [], [], [tensor])
    return helper.make_node("If", ["c"], ["y"], then_branch=graph_, else_branch=graph_)


def in_attribute(tensor):
    return helper.make_node("Constant", [], ["y"], value=tensor)


def sparse(tensor):
    return onnx.SparseTensorProto(values=tensor, indices=elsewhere("model.onnx.data"), dims=[1])


PLACES = {
    "an initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "a sparse initializer": lambda model, tensor: model.graph.sparse_initializer.append(sparse(tensor)),
    "a node's attribute": lambda model, tensor: model.graph.node.append(in_attribute(tensor)),
    "a subgraph": lambda model, tensor: model.graph.node.append(in_subgraph(tensor)),
    "a function": lambda model, tensor: model.functions[0].node.append(in_attribute(tensor)),
    "a function's subgraph": lambda model, tensor: model.functions[0].node.append(in_subgraph(tensor)),
    "a training graph": lambda model, tensor: model.training_info.add().algorithm.initializer.append(tensor),
    "a sparse attribute": lambda model, tensor: model.graph.node.append(
        helper.make_node("Constant", [], ["y"], sparse_value=sparse(tensor))
    ),
}


@pytest.mark.fault("files", "weights in files that the manifest does not list", now="refused before a graph is loaded")
@pytest.mark.parametrize("place", PLACES)
def test_tensors_in_other_files_are_found(tiny_artifact, place, record_property):
    locations = ["other.data", "../other.data", "/etc/passwd", "sub/model.onnx.data", "./model.onnx.data", ".data"]
    locations += ["*/_ORT_MEM_ADDR_/*", "model.onnx.data\0", "MODEL.ONNX.DATA", "\u0430"]
    record_property("cases", len(locations))
    manifest, data = open_artifact(tiny_artifact).manifest, tiny_artifact.with_name("model.onnx.data")
    for location in locations:
        model = onnx.load(tiny_artifact, load_external_data=False)
        PLACES[place](model, elsewhere(location))
        with pytest.raises(CladaError) as error:
            check_graph(tiny_artifact, model.SerializeToString(), data, manifest)
        assert "and its weights belong in model.onnx.data" in str(error.value)


def test_a_location_given_twice_hides_nothing(tiny_artifact):
    """Readers differ in which of two they take."""
    manifest, data = open_artifact(tiny_artifact).manifest, tiny_artifact.with_name("model.onnx.data")
    for pair in (("model.onnx.data", "other"), ("other", "model.onnx.data"), ("model.onnx", ".data")):
        model = onnx.load(tiny_artifact, load_external_data=False)
        tensor = elsewhere(pair[0])
        tensor.external_data.add(key="location", value=pair[1])
        model.graph.initializer.append(tensor)
        with pytest.raises(CladaError, match="has tensors in"):
            check_graph(tiny_artifact, model.SerializeToString(), data, manifest)


@pytest.mark.fault("files", "graphs of random bytes, hashes right", now="read, or refused in one line, in no time")
def test_random_graphs_are_refused_or_taken(tiny_artifact, record_property):
    """Whatever the file holds, the reader ends, with nothing but our error."""
    manifest, data = open_artifact(tiny_artifact).manifest, tiny_artifact.with_name("model.onnx.data")
    content = tiny_artifact.with_name("model.onnxruntime.onnx").read_bytes()
    source = random.Random(0)
    cases = 150
    record_property("cases", cases)
    started = time.process_time()
    for case in range(cases):
        wrong = bytearray(content)
        for _ in range(source.choice((1, 3, 20))):
            wrong[source.randrange(len(wrong))] = source.randrange(256)
        if case % 3 == 0:
            del wrong[source.randrange(len(wrong)) :]
        try:
            check_graph(tiny_artifact, bytes(wrong), data, manifest)
        except CladaError as error:
            assert "\n" not in str(error), repr(str(error))
    assert time.process_time() - started < cases


@pytest.mark.parametrize("content", [b"", b"\xff" * 1000, b"\x3a\xff\xff\xff\xff\x0f", b"\x3a" * 100, b"\x00" * 100])
def test_what_is_no_onnx_file_is_refused(artifact, content):
    artifact.write_bytes(content)
    vouch_for(artifact)
    with pytest.raises(CladaError, match=r"model\.onnx (is no ONNX file that clada-export wrote|has the ops)"):
        Session(artifact)


def test_a_number_without_an_end_takes_no_time(tiny_artifact):
    manifest, data = open_artifact(tiny_artifact).manifest, tiny_artifact.with_name("model.onnx.data")
    with pytest.raises(CladaError, match="a number of more than 64 bits"):
        check_graph(tiny_artifact, b"\xff" * 2_000_000, data, manifest)


def test_graphs_within_graphs_have_an_end(tiny_artifact):
    manifest, data = open_artifact(tiny_artifact).manifest, tiny_artifact.with_name("model.onnx.data")
    inner = b""
    for _ in range(200):
        for number in (6, 5, 1):  # an attribute's graph, a node's attribute, a graph's node
            inner = bytes([number << 3 | 2]) + _varint(len(inner)) + inner
    with pytest.raises(CladaError, match="nested too deeply"):
        check_graph(tiny_artifact, b"\x3a" + _varint(len(inner)) + inner, data, manifest)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


@pytest.mark.parametrize("kind", ["tokenizer.json", "generation_config.json"])
def test_companions_that_are_nonsense_are_one_error(artifact, kind):
    artifact.with_name(kind).write_text("nonsense")
    vouch_for(artifact.with_name(kind))
    with pytest.raises(CladaError, match=kind.replace(".", r"\.")):
        Session(artifact)


def test_the_manifest_of_a_session_is_typed(tiny_artifact):
    manifest = Session(tiny_artifact).manifest
    content = json.loads(tiny_artifact.with_name(MANIFEST_NAME).read_text())
    assert manifest.model.neurons == tuple(content["model"]["neurons"])
    assert manifest.policy.goal == ("target_sparsity", 0.5)


# Of format version 2: a file that has been written is read under these names, however the code spells them elsewhere.
KEYS = """
agreement allocation anticipation bits block_size bytes calibration compensation context_length data
data_sha256 dial divergence_nats dtype effort error_budget factors family feed_forward ffn_cost files
fixed_shapes format_version gains hidden_size high in_place_cache inputs kept layer layers linears low
median_threshold method model name neurons onnxruntime ops opset outputs parameters parts pieces policy pool
price prior_tokens probes product products prompt_tokens quantization r2 realised reanalysis reanalysis_load
required scale scale_knots seed sizes surprisal_weight target_sparsity thresholds tokens tolerance tools
verification vocabulary_size weights
"""


def test_keys_of_the_manifest_keep_their_names():
    kinds = [kind for kind in vars(manifest).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    assert {field.name for kind in kinds for field in dataclasses.fields(kind)} == set(KEYS.split())
