"""The dense graph with 4-bit weights, as ONNX Runtime's own kernel for them takes them."""

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes.common import RemoveUnusedNodesPass

from clada.benchmark.storage import initializer, sizes, weight
from clada.plugins.ops.record import Array

BLOCK = 32
# Compute in int8: the fastest that the kernel has on a CPU.
_ACCURACY_LEVEL = 4
_DOMAIN = "com.microsoft"
_CHUNK = 2048


def quantise(matrix: Array) -> tuple[Array, Array]:
    """Symmetric 4-bit blocks along the rows.

    Args:
        matrix: [K, N], K a multiple of BLOCK.

    Returns:
        Two weights a byte, the earlier one low, uint8[N, K / BLOCK, BLOCK / 2], and scales f32[N, K / BLOCK]. A
        weight is (q - 8) * scale.
    """
    rows, columns = matrix.shape
    packed = np.empty((columns, rows // BLOCK, BLOCK // 2), np.uint8)
    scales = np.empty((columns, rows // BLOCK), np.float32)
    for start in range(0, columns, _CHUNK):
        part = slice(start, start + _CHUNK)
        blocks = np.ascontiguousarray(matrix[:, part].T, np.float32).reshape(-1, rows // BLOCK, BLOCK)
        scales[part] = np.maximum(np.abs(blocks).max(axis=-1) / 7, np.finfo(np.float32).tiny)
        codes = (np.rint(blocks / scales[part, :, None]) + 8).astype(np.uint8)
        packed[part] = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed, scales


def make_int4(model: onnx_ir.Model) -> None:
    """Replace, in place, every product with a constant matrix."""
    for node in list(model.graph):
        tensor = weight(node.inputs[1]) if node.op_type == "MatMul" else None
        if tensor is None:
            continue
        x, matrix = node.inputs
        assert matrix is not None
        rows, columns = sizes(tensor)
        packed, scales = quantise(tensor.numpy())
        values = [
            initializer(f"{matrix.name}.int4", onnx_ir.tensor(packed)),
            initializer(f"{matrix.name}.scales", onnx_ir.tensor(scales)),
        ]
        for value in values:
            model.graph.register_initializer(value)
        attributes = {"K": rows, "N": columns, "bits": 4, "block_size": BLOCK, "accuracy_level": _ACCURACY_LEVEL}
        product = onnx_ir.node("MatMulNBits", [x, *values], attributes, domain=_DOMAIN)
        replace_nodes_and_values(model.graph, node, [node], [product], list(node.outputs), list(product.outputs))
    RemoveUnusedNodesPass()(model)
    model.opset_imports[_DOMAIN] = 1
