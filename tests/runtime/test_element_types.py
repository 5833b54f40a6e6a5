"""Ops of a float16 model in ONNX Runtime, which runs float16 ops on a CPU in float32 where it can."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from clada.benchmark.storage import initializer
from clada.errors import CladaError
from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, SPARSE_LINEAR, VERSION
from clada.ops.onnx import function_proto
from clada.plugins.onnxruntime import register
from clada.runtime.models.ort_cpu import Execution, create_session

WIDTH, OUTPUTS, OPSET = 1024, 64, 20
HALF = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)


@pytest.fixture
def graph(tmp_path):
    """SparseLinear between a product and a sum, neither of which ONNX Runtime computes in float16 on a CPU."""

    def value(name: str, shape: list[int], kind: onnx_ir.TensorType) -> onnx_ir.Value:
        return onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=kind)

    single = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    gate, up = (value(name, [1, 1, WIDTH], HALF) for name in ("gate", "up"))
    residual = value("residual", [1, 1, OUTPUTS], HALF)
    threshold, scale = value("threshold", [WIDTH], single), value("scale", [1, 1], single)
    weights = np.random.default_rng(1).standard_normal((WIDTH, OUTPUTS)).astype(np.float16)
    w = initializer("w", onnx_ir.tensor(weights))
    product = onnx_ir.node("Mul", [gate, up])
    x = product.outputs[0]
    sparse = onnx_ir.node(SPARSE_LINEAR.name, [x, w, threshold, scale], PLUGIN_ATTRIBUTES, domain=DOMAIN, num_outputs=2)
    total = onnx_ir.node("Add", [sparse.outputs[0], residual])
    # What is an output of the graph itself, ONNX Runtime does not widen.
    doubled = onnx_ir.node("Add", [sparse.outputs[1], sparse.outputs[1]])
    for output, name, shape, kind in (
        (x, "x", [1, 1, WIDTH], HALF),
        (sparse.outputs[0], "y", [1, 1, OUTPUTS], HALF),
        (sparse.outputs[1], "kept", [1, 1], onnx_ir.TensorType(onnx_ir.DataType.INT32)),
        (total.outputs[0], "out", [1, 1, OUTPUTS], HALF),
        (doubled.outputs[0], "twice_kept", [1, 1], onnx_ir.TensorType(onnx_ir.DataType.INT32)),
    ):
        output.name, output.shape, output.type = name, onnx_ir.Shape(shape), kind
    inner = onnx_ir.Graph(
        [gate, up, residual, threshold, scale],
        [total.outputs[0], doubled.outputs[0], x],
        nodes=[product, sparse, total, doubled],
        initializers=[w],
        opset_imports={"": OPSET, DOMAIN: VERSION},
        name="between",
    )
    function = onnx_ir.serde.deserialize_function(function_proto(SPARSE_LINEAR, {}, OPSET))
    path = tmp_path / "model.onnx"
    onnx_ir.save(onnx_ir.Model(inner, ir_version=10, functions=[function]), path)
    return path


def test_a_float16_op_is_given_what_is_rounded_to_float16(graph):
    """Thresholds are what rounding makes of x: half of what is not rounded lies below them."""
    rng = np.random.default_rng(0)
    gate, up = (rng.standard_normal((1, 1, WIDTH)).astype(np.float16) for _ in range(2))
    feed = {"gate": gate, "up": up, "residual": np.zeros((1, 1, OUTPUTS), np.float16)}
    feed |= {"threshold": np.abs(gate * up).reshape(-1).astype(np.float32), "scale": np.ones((1, 1), np.float32)}
    session, kernels = create_session(graph, Execution(1, "native", element="float16"))
    assert kernels.startswith("native")
    _, twice_kept, x = session.run(["out", "twice_kept", "x"], feed)
    np.testing.assert_array_equal(x, gate * up)
    assert twice_kept[0, 0] == 2 * np.count_nonzero(x)


def test_a_type_that_is_not_known_is_refused():
    with pytest.raises(CladaError, match=r"clada.element is 'float8'; it may be empty, float32, float16 or bfloat16"):
        register(onnxruntime.SessionOptions(), element="float8")
