"""Dense graph of the same model: our ops replaced by the nodes that an ordinary export has."""

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from clada.benchmark.storage import initializer, sizes, transposed, weight
from clada.ops import DOMAIN, LOAD_SIGNAL, OPS_OF_CPUS, QUANTIZED_LINEAR, SPARSE_GATED_FFN, SPARSE_LINEAR
from clada.ops.block_quantization import dequantize


def _zero(shape: list[int], dtype: type) -> onnx_ir.Node:
    return onnx_ir.node("Constant", [], {"value": onnx_ir.tensor(np.zeros(shape, dtype))})


def _transposed(graph: onnx_ir.Graph, value: onnx_ir.Value | None) -> onnx_ir.Value:
    """Transpose a weight of ours to the layout that MatMul takes."""
    tensor = weight(value)
    assert value is not None
    assert tensor is not None
    result = initializer(f"{value.name}.transposed", transposed(tensor))
    graph.register_initializer(result)
    return result


def _restored(graph: onnx_ir.Graph, node: onnx_ir.Node) -> onnx_ir.Value:
    """Dequantized float32 matrix of a node of ours, computed when it is needed."""
    given = dict(zip((spec.name for spec in QUANTIZED_LINEAR.inputs), node.inputs, strict=True))
    codes, scales = weight(given["w"]), weight(given["s"])
    assert codes is not None
    assert scales is not None
    assert given["w"] is not None
    bits = int(node.attributes["bits"].value)

    def compute() -> onnx_ir.TensorProtocol:
        return onnx_ir.tensor(dequantize(codes.numpy(), scales.numpy().astype(np.float32), bits))

    rows, packed = sizes(codes)
    shape = onnx_ir.Shape([rows, packed * 8 // bits])
    result = initializer(f"{given['w'].name}.restored", onnx_ir.LazyTensor(compute, onnx_ir.DataType.FLOAT, shape))
    graph.register_initializer(result)
    return result


def _product(node: onnx_ir.Node) -> list[onnx_ir.Node]:
    """Product in standard ops; ONNX Runtime has none in bfloat16, and widens such weights when it loads them."""
    x, w = node.inputs[:2]
    tensor = weight(w)
    if tensor is None or tensor.dtype != onnx_ir.DataType.BFLOAT16:
        return [onnx_ir.node("MatMul", [x, w])]
    wide = onnx_ir.node("Cast", [w], {"to": onnx_ir.DataType.FLOAT})
    return [wide, onnx_ir.node("MatMul", [x, wide.outputs[0]])]


def _gated(graph: onnx_ir.Graph, node: onnx_ir.Node) -> list[onnx_ir.Node]:
    """Feed-forward network in standard ops; the last three nodes give y, active and score."""
    x, w_gate, w_up, w_down = node.inputs[:4]
    assert x is not None
    assert node.attributes["activation"].value == "silu"
    gate, up = (onnx_ir.node("MatMul", [x, _transposed(graph, value)]) for value in (w_gate, w_up))
    sigmoid = onnx_ir.node("Sigmoid", [gate.outputs[0]])
    silu = onnx_ir.node("Mul", [gate.outputs[0], sigmoid.outputs[0]])
    hidden = onnx_ir.node("Mul", [silu.outputs[0], up.outputs[0]])
    down = onnx_ir.node("MatMul", [hidden.outputs[0], w_down])
    assert w_down is not None
    assert w_down.shape is not None
    neurons = int(w_down.shape.numpy()[0])
    return [gate, up, sigmoid, silu, hidden, down, _zero([1, 1], np.int32), _zero([1, neurons], np.float32)]


def make_dense(model: onnx_ir.Model) -> None:
    """Replace our ops in place, batch 1: the load signal and the counts of neurons become zeros and cost nothing.

    Of those that skip nothing the bodies are taken, which are of standard ops and ONNX Runtime's.
    """
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type in OPS_OF_CPUS:
            continue
        if node.op_type == LOAD_SIGNAL.name:
            nodes = [_zero([1], np.float32) for _ in node.outputs]
        elif node.op_type == SPARSE_LINEAR.name:
            nodes = [*_product(node), _zero([1, 1], np.int32)]
        elif node.op_type == QUANTIZED_LINEAR.name:
            product = onnx_ir.node("MatMul", [node.inputs[0], _restored(model.graph, node)])
            nodes = [product, _zero([1, 1], np.int32)]
        else:
            assert node.op_type == SPARSE_GATED_FFN.name
            nodes = _gated(model.graph, node)
        results = [new.outputs[0] for new in nodes[-len(node.outputs) :]]
        replace_nodes_and_values(model.graph, node, [node], nodes, list(node.outputs), results)
    RemoveUnusedNodesPass()(model)
    InlinePass()(model)
    model.functions.clear()
