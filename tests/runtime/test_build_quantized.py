"""Engines of models with quantized weights, built by TensorRT for RTX on a machine with no GPU."""

import functools
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir
import pytest
import tensorrt_rtx
import torch

from clada.contract.artifact import CONFIG_NAME, data_name
from clada.contract.onnx_wire import nodes_of, without_functions
from clada.errors import CladaError
from clada.exporter.graph import trace as tracing
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.patch import sparsify
from clada.exporter.quantization.packed import read_packed
from clada.exporter.quantization.quantize import QuantizationConfig, quantize_model
from clada.ops import DOMAIN, LOAD_SIGNAL, OPS, PLUGIN_ATTRIBUTES, QUANTIZED, VERSION
from clada.runtime.trt.building.packed_constants import keep_packed
from clada.runtime.trt.building.quantization_scales import check_scales_of
from tests.exporter.test_trace import LOAD_MAP
from tests.runtime.test_build import StandInLayer, built, fails, parsed
from tests.support.checkpoints import LAYERS, NEURONS, random_model
from tests.support.exhaustive import few
from tests.support.manifests import describe_graph, vouch_for
from tests.support.thresholds import uniform

SIZES = {
    "llama": {"hidden_size": 64, "num_attention_heads": 4},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "num_attention_heads": 4},
}
VARIANTS = pytest.mark.parametrize(
    ("family", "bits", "dtype", "opset"),
    few(
        [
            ("llama", 4, torch.float32, 21),
            ("llama", 8, torch.float16, 23),
            ("opt", 8, torch.float16, 21),
            ("opt", 4, torch.float32, 21),
        ],
        # Which other tests here trace anyway.
        [("llama", 4, torch.float32, 21), ("opt", 4, torch.float32, 21)],
    ),
)


@pytest.fixture(scope="module")
def artifact(tiny_artifact, tmp_path_factory):
    """A function to the ONNX file of an artifact, calibrated on nothing."""

    @functools.cache
    def model_file(family: str, bits: int, dtype: torch.dtype, opset: int) -> Path:
        folder = tmp_path_factory.mktemp("quantized")
        shutil.copytree(tiny_artifact.parent, folder, dirs_exist_ok=True)
        model = random_model(family, **SIZES[family])
        sparsify(model)
        calibrated = Calibrated(uniform(model, 0.1), load_map=LOAD_MAP)
        rows = torch.zeros(1, 2, dtype=torch.int64)
        packed = quantize_model(model, rows, QuantizationConfig(bits), lambda _: None)
        traced = tracing.trace(model.to(dtype), calibrated, opset=opset, quantized=packed)
        tracing.save(traced, folder / "model.onnx")
        (folder / CONFIG_NAME).write_text(model.config.to_json_string())
        told = {"family": family, "dtype": str(dtype).removeprefix("torch."), "opset": opset, "hidden_size": 64}
        op = next(node.op_type for node in traced.graph if node.op_type.startswith("Quantized"))
        format_ = {"bits": bits, "block_size": 32, "method": "rtn", "feed_forward": [], "linears": []}
        ops = dict.fromkeys([op, LOAD_SIGNAL.name], VERSION)
        describe_graph(folder, LOAD_MAP, told, ops=ops, quantization=format_)
        return folder / "model.onnx"

    return model_file


@pytest.fixture
def make(artifact, tmp_path):
    """The same, of a copy that a test may change."""

    def copy(*variant) -> Path:
        shutil.copytree(artifact(*variant).parent, tmp_path, dirs_exist_ok=True)
        return tmp_path / "model.onnx"

    return copy


@VARIANTS
def test_quantized_models_build(make, capsys, family, bits, dtype, opset):
    model = make(family, bits, dtype, opset)
    capsys.readouterr()
    built(model, "--target", "sm_89", "--capacity", 128)
    matrices = (3 if family == "llama" else 2) * LAYERS
    assert f"; {matrices} quantized matrices stay packed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "scale", "external_from", "reason"),
    [
        ("llama", 0, 256, "QuantizedSparseGatedFFN node [^:]*: s_gate has a scale that is zero, in row 5; export the"),
        ("opt", np.inf, 1 << 30, "QuantizedSparseFFN node [^:]*: s_in has a scale that is infinite, in row 5"),
        ("llama", np.nan, 1 << 30, "s_gate has a scale that is NaN, in row 5"),
    ],
)
def test_scales_that_cannot_be_used_are_found_before_building(make, capsys, family, scale, external_from, reason):
    """Wherever they are: small constants are in the ONNX file, others beside it."""
    path = make(family, 4, torch.float32, 21)
    model = onnx_ir.load(path)
    node = next(node for node in model.graph if node.op_type.startswith("Quantized"))
    value = node.inputs[2]
    scales = value.const_value.numpy().copy()
    scales[5, 1] = scale
    value.const_value = onnx_ir.tensor(scales, name=value.name)
    onnx_ir.save(model, path, external_data=data_name(path), size_threshold_bytes=external_from)
    vouch_for(path)
    vouch_for(path.with_name(data_name(path)))
    capsys.readouterr()
    assert re.search(reason, fails(capsys, path, "--target", "sm_89"))


def test_scales_that_do_not_fit_are_found_before_building(make):
    path = make("opt", 8, torch.float16, 21)
    content = path.read_bytes()
    node = next(node for node in nodes_of(content, DOMAIN) if node.op.startswith("Quantized"))
    swapped = replace(node, inputs=(*node.inputs[:2], "surprisal_knots", *node.inputs[3:]))
    with pytest.raises(CladaError, match=rf"s_in has \d+ scales, which do not fit {NEURONS} neurons"):
        check_scales_of(path, content, [swapped])


def held(layer) -> np.ndarray:
    """The content of a constant in a network; TensorRT's Python gives out no 4-bit ones."""
    layer.__class__ = tensorrt_rtx.IConstantLayer
    return layer.weights.ravel()


@VARIANTS
def test_weights_are_those_of_the_file(make, family, bits, dtype, opset):
    """In the order of the layers, with their scales, and unpacked to the type of the model."""
    path = make(family, bits, dtype, opset)
    _, network = parsed(path, path.read_bytes())
    before = network.num_layers
    count = keep_packed(tensorrt_rtx, network)
    expected = [packed for layer in read_packed(path).layers for packed in layer.values()]
    assert count == len(expected)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(0).name: layer for layer in layers}
    found = [layer for layer in layers[before:] if layer.type == tensorrt_rtx.LayerType.DEQUANTIZE]
    wide = tensorrt_rtx.float32 if dtype == torch.float32 else tensorrt_rtx.float16
    for layer, packed in zip(found, expected, strict=True):
        codes, scales = (makers[layer.get_input(slot).name] for slot in (0, 1))
        assert codes.get_output(0).dtype == (tensorrt_rtx.int4 if bits == 4 else tensorrt_rtx.int8)
        assert tuple(codes.get_output(0).shape) == (NEURONS, 64)
        assert layer.get_output(0).dtype == wide
        if bits == 8:
            np.testing.assert_array_equal(held(codes), packed.codes.numpy().ravel())
        if scales.type == tensorrt_rtx.LayerType.CAST:
            scales = makers[scales.get_input(0).name]
        np.testing.assert_array_equal(held(scales), packed.scales.numpy().ravel())


@VARIANTS
def test_plugins_get_weights_as_they_are_in_the_file(make, family, bits, dtype, opset):
    """With attributes that a plugin knows, and no body beside it whose weights could be kept packed."""
    path = make(family, bits, dtype, opset)
    graph = onnx.load_model_from_string(without_functions(path.read_bytes()))
    assert not graph.functions
    constants = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type in {op.name for op in QUANTIZED.values()}]
    assert len(nodes) == LAYERS
    for node in nodes:
        op = OPS[node.op_type]
        names = [attribute.name for attribute in op.attributes] + list(PLUGIN_ATTRIBUTES)
        assert sorted(attribute.name for attribute in node.attribute) == sorted(names)
        for spec, name in zip(op.inputs, node.input, strict=True):
            if spec.dtype in ("int8", "float16"):
                assert constants[name] == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))


def test_plugins_are_left_alone():
    """No library here makes a network with plugins without a driver."""
    plugin = StandInLayer(tensorrt_rtx.LayerType.PLUGIN_V3, "/model/layers.0/mlp/y")
    codes = StandInLayer(tensorrt_rtx.LayerType.CONSTANT, "model.layers.0.mlp.up_proj.weight.codes")
    network = SimpleNamespace(num_layers=2, get_layer=lambda index: [codes, plugin][index])
    assert keep_packed(tensorrt_rtx, network) == 0


def test_body_of_another_kind_is_refused(make):
    """A network that unpacks otherwise is not built into something else."""
    path = make("llama", 4, torch.float32, 21)
    _, network = parsed(path, path.read_bytes())
    end = next(
        layer
        for layer in (network.get_layer(index) for index in range(network.num_layers))
        if layer.get_output(0).name == "w_up_wide"
    )
    values = np.ones((NEURONS, 64), np.float32)
    end.set_input(0, network.add_constant(values.shape, tensorrt_rtx.Weights(values)).get_output(0))
    with pytest.raises(CladaError, match="w_up_wide is not unpacked from codes and scales"):
        keep_packed(tensorrt_rtx, network)
