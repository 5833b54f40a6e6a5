"""An ONNX file names the files that its weights are in: only those beside it, wherever in the graph a tensor is."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from clada.errors import CladaError
from clada.runtime.models.external_data import check_external_data
from clada.runtime.models.ort_cpu import Execution, create_session

SECRET = "secret.data"


def external_tensor(name: str, locations: list[str]) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.extend(onnx.StringStringEntryProto(key="location", value=value) for value in locations)
    return tensor


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [tensor.name], value=tensor)


def graph_of(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] = ()) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4])
    return helper.make_graph(nodes, "graph", [], [output], initializers)


def in_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return helper.make_model(graph_of([], [tensor]))


def in_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return helper.make_model(graph_of([constant(tensor)]))


def in_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    branch = graph_of([], [tensor])
    condition = constant(helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]))
    branches = helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
    return helper.make_model(graph_of([condition, branches]))


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    opset = [helper.make_opsetid("", 20)]
    body = helper.make_function("clada", "Body", [], ["w"], [constant(tensor)], opset)
    node = helper.make_node("Body", [], ["w"], domain="clada")
    return helper.make_model(
        graph_of([node]), functions=[body], opset_imports=[*opset, helper.make_opsetid("clada", 1)]
    )


def in_sparse_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = helper.make_model(graph_of([]))
    sparse = model.graph.sparse_initializer.add(dims=[8])
    sparse.values.CopyFrom(tensor)
    return model


PLACES = (in_initializer, in_attribute, in_subgraph, in_function, in_sparse_initializer)
ELSEWHERE = (
    "../secret.data",
    "folder/secret.data",
    "/etc/passwd",
    "..",
    ".",
    "",
    "C:secret.data",
    "..\\secret.data",
    "a\0b",
)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model_path(tmp_path) -> Path:
    """Where a model may be written, with a file beside it and another that is not its own."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for place in (folder / "model.onnx.data", tmp_path / SECRET):
        np.arange(4, dtype=np.float32).tofile(place)
    return folder / "model.onnx"


@pytest.mark.fault("files", "a graph that names weights outside of the artifact's folder", now="refused in one line")
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_weights_elsewhere_are_refused(place, model_path, record_property):
    for name in ELSEWHERE:
        with pytest.raises(CladaError, match="is not the name of a file beside it"):
            check_external_data(write(model_path, place(external_tensor("w", [name]))))
        # Readers differ in which of two names they take.
        for both in ([name, "model.onnx.data"], ["model.onnx.data", name]):
            with pytest.raises(CladaError, match="is not the name of a file beside it"):
                check_external_data(write(model_path, place(external_tensor("w", both))))
    record_property("cases", 3 * len(ELSEWHERE))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_weights_beside_the_file_are_taken(place, model_path):
    path = write(model_path, place(external_tensor("w", ["model.onnx.data"])))
    check_external_data(path)
    (path.parent / "model.onnx.data").unlink()
    with pytest.raises(CladaError, match="there is no such file beside it"):
        check_external_data(path)


@pytest.mark.fault(
    "files", "a graph with weights in another folder, loaded", now="refused before ONNX Runtime reads it"
)
def test_a_session_asks_first(model_path):
    path = write(model_path, in_initializer(external_tensor("w", [f"../{SECRET}"])))
    with pytest.raises(CladaError, match=r"has weights in '../secret.data'"):
        create_session(path, Execution(kernels="bodies"))


@pytest.mark.fault("files", "an ONNX file that is cut short or has bytes changed", now="no error but ours")
def test_any_bytes_are_read_or_refused(model_path, record_property):
    whole = in_function(external_tensor("w", ["model.onnx.data"])).SerializeToString()
    rng = np.random.default_rng(0)
    contents = [whole[:size] for size in range(0, len(whole), 3)]
    for _ in range(200):
        content = bytearray(whole)
        content[rng.integers(len(content))] = rng.integers(256)
        contents.append(bytes(content))
    for content in contents:
        model_path.write_bytes(content)
        try:
            check_external_data(model_path)
        except CladaError as error:
            assert len(str(error).splitlines()) == 1
    record_property("cases", len(contents))


def test_an_artifact_is_taken_as_it_is_and_behind_links(tiny_artifact, tmp_path):
    """As a hub's cache keeps files."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in tiny_artifact.parent.iterdir():
        (linked / file.name).symlink_to(file)
    copied = shutil.copytree(tiny_artifact.parent, tmp_path / "copied")
    for folder in (tiny_artifact.parent, linked, copied):
        check_external_data(folder / tiny_artifact.name)
