"""Dense graph with quantized weights, in the format of ONNX Runtime's own kernels."""

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes.common import RemoveUnusedNodesPass

from clada.benchmark.precisions import Blocks, rounded
from clada.benchmark.storage import initializer, sizes, weight
from clada.ops.record import Array

# Compute in int8: the fastest that the kernels have on a CPU.
_ACCURACY_LEVEL = 4
_DOMAIN = "com.microsoft"
# What makes a code in two's complement one that counts from the middle of its range.
_OFFSET = {4: np.uint8(0x88), 8: np.uint8(0x80)}


def packed(matrix: Array, blocks: Blocks) -> tuple[Array, Array]:
    """Pack a matrix in the kernels' format.

    Args:
        matrix: [K, N], K a multiple of the block size.
        blocks: Format to quantize it to, along K.

    Returns:
        Codes uint8[N, K / block size, bytes a block], the earlier weight of a byte low, and scales
        f32[N, K / block size]. A weight is (q - 8) * scale, or (q - 128) * scale in 8 bits.
    """
    codes, scales = rounded(matrix.T, blocks)
    return (codes.view(np.uint8) ^ _OFFSET[blocks.bits]).reshape(*scales.shape, -1), scales.astype(np.float32)


def make_products_quantized(model: onnx_ir.Model, blocks: Blocks) -> None:
    """Quantize, in place, every product with a constant matrix."""
    for node in list(model.graph):
        tensor = weight(node.inputs[1]) if node.op_type == "MatMul" else None
        if tensor is None:
            continue
        x, matrix = node.inputs
        assert matrix is not None
        rows, columns = sizes(tensor)
        codes, scales = packed(tensor.numpy(), blocks)
        values = [
            initializer(f"{matrix.name}.codes", onnx_ir.tensor(codes)),
            initializer(f"{matrix.name}.scales", onnx_ir.tensor(scales)),
        ]
        for value in values:
            model.graph.register_initializer(value)
        attributes = {"K": rows, "N": columns, "bits": blocks.bits, "block_size": blocks.block_size}
        attributes["accuracy_level"] = _ACCURACY_LEVEL
        product = onnx_ir.node("MatMulNBits", [x, *values], attributes, domain=_DOMAIN)
        replace_nodes_and_values(model.graph, node, [node], [product], list(node.outputs), list(product.outputs))
    RemoveUnusedNodesPass()(model)
    model.opset_imports[_DOMAIN] = 1
