"""Properties of a module and its arguments that decide which graph is taken; with a stand-in for torch's exporter."""

import copy
import dataclasses
import shutil
import types

import onnx_ir
import pytest
import torch

from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.ort_attention import in_place_attention
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from tests.exporter.test_trace import LOAD_MAP
from tests.support.artifacts import SEEDS
from tests.support.checkpoints import random_model
from tests.support.thresholds import uniform
from tests.support.traced_once import traced_once


@dataclasses.dataclass
class Exporter:
    """Makes graphs of nothing, each named by how many there were before."""

    calls: int = 0

    def __call__(self, module, arguments, *, kwargs, **options):
        """As `torch.onnx.export` is called."""
        self.calls += 1
        graph = onnx_ir.Graph([], [], nodes=[], opset_imports={"": 20}, name=str(self.calls))
        return types.SimpleNamespace(model=onnx_ir.Model(graph, ir_version=10))


@pytest.fixture
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture
def taken(exporter, tmp_path):
    """A function from a decoder, and other arguments of an export, to the name of the graph that is taken."""
    export = traced_once(exporter, tmp_path)

    def name(decoder: Decoder, kwargs: dict | None = None, **options) -> str:
        return export(decoder, (), kwargs=kwargs or {"x": torch.zeros(2, 3)}, **options).model.graph.name

    return name


def decoder(family: str = "llama", **changes) -> Decoder:
    model = random_model(family, num_hidden_layers=2, **changes)
    sparsify(model)
    return Decoder(model, Calibrated(uniform(model), load_map=LOAD_MAP)).eval()


def test_a_graph_is_made_once(taken, exporter):
    """Of models that are alike, whatever the arguments' values and the calibrated ones are."""
    other = decoder()
    other.calibrated = dataclasses.replace(other.calibrated, thresholds=uniform(other.model, 1.0))
    names = [taken(decoder()), taken(decoder()), taken(other), taken(decoder(), {"x": torch.ones(2, 3)})]
    assert names == ["1"] * 4
    assert exporter.calls == 1


def test_where_a_model_was_loaded_from_is_nothing_to_its_graph(taken, exporter, checkpoint, tmp_path):
    shutil.copytree(checkpoint("llama"), tmp_path / "moved")
    folders = checkpoint("llama"), tmp_path / "moved"
    models = [random_model("llama", SEEDS["llama"]), *(load_model(str(folder), torch.float32)[0] for folder in folders)]
    for model in models:
        sparsify(model)
        taken(Decoder(model, Calibrated(uniform(model), load_map=LOAD_MAP)).eval())
    assert exporter.calls == 1


def in_half(made: Decoder) -> None:
    made.half()


def one_weight(made: Decoder) -> None:
    next(made.model.parameters()).data.view(-1)[0] += 1


def one_attribute(made: Decoder) -> None:
    made.all_logits = True


def one_activation(made: Decoder) -> None:
    next(module for module in made.modules() if hasattr(module, "activation")).activation = "relu"


def one_setting(made: Decoder) -> None:
    made.model.config.rms_norm_eps *= 2


def a_probe(made: Decoder) -> None:
    probe = Anticipation(1, *(torch.zeros(1) for _ in range(5)))
    made.calibrated = dataclasses.replace(made.calibrated, anticipations=(probe,))


def a_probe_elsewhere(made: Decoder) -> None:
    probe = Anticipation(0, *(torch.zeros(1) for _ in range(5)))
    made.calibrated = dataclasses.replace(made.calibrated, anticipations=(probe,))


CHANGES = (in_half, one_weight, one_attribute, one_activation, one_setting, a_probe, a_probe_elsewhere)


def test_whatever_changes_a_graph_makes_another(taken):
    plain = decoder()
    names = [taken(plain)]
    for change in CHANGES:
        changed = copy.deepcopy(plain)
        change(changed)
        names.append(taken(changed))
    with in_place_attention(plain.model):
        names.append(taken(plain))
    names += [taken(decoder(sliding_window=4)), taken(decoder("qwen2"))]
    names += [taken(plain, {"x": torch.zeros(2, 4)}), taken(plain, {"x": torch.zeros(2, 3).half()})]
    names += [taken(plain, {"x": [torch.zeros(2, 3)]}), taken(plain, {"y": torch.zeros(2, 3)})]
    one, other = torch.zeros(2, 3), torch.zeros(2, 3)
    names += [taken(plain, {"x": [one, one]}), taken(plain, {"x": [one, other]})]
    names += [
        taken(plain, opset_version=20),
        taken(plain, opset_version=21),
        taken(plain, dynamic_shapes={"x": {0: "n"}}),
    ]
    assert len(set(names)) == len(names)
