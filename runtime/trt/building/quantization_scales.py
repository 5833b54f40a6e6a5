"""Check of the scales of quantized weights before an engine is built: a plugin sees them on the device only."""

from pathlib import Path

import numpy as np

from clada.contract.artifact import data_name
from clada.contract.onnx_wire import Constant, Node, constants_of
from clada.errors import CladaError
from clada.ops import QUANTIZED
from clada.ops.block_quantization import check_scales
from clada.ops.quantized_matrices import matrix_names, scales_name
from clada.ops.record import Array


def check_scales_of(model: Path, content: bytes, nodes: list[Node]) -> None:
    """Check that every scale of an artifact's quantized weights can be used.

    Args:
        model: The ONNX file.
        content: Content of the file.
        nodes: Our nodes of its graph.

    Raises:
        CladaError: A scale is zero, infinite or NaN, or they do not fit, or are not where an export puts
            them.
    """
    ops = {op.name: op for op in QUANTIZED.values()}
    quantized = [node for node in nodes if node.op in ops]
    constants = constants_of(content) if quantized else {}
    for node in quantized:
        given = dict(zip((spec.name for spec in ops[node.op].inputs), node.inputs, strict=True))
        # Each neuron, or input of a linear op, has a threshold, and a row of each matrix.
        neurons = len(np.frombuffer(_content(model, constants, given["threshold"]), np.float32))
        for name in map(scales_name, matrix_names(ops[node.op])):
            what = f"{node.op} node {node.name}: {name}"
            scales = np.frombuffer(_content(model, constants, given[name]), np.float16)
            if len(scales) % neurons:
                raise CladaError(f"{what} has {len(scales)} scales, which do not fit {neurons} neurons")
            check_scales(what, scales.reshape(neurons, -1))


def _content(model: Path, constants: dict[str, Constant], name: str) -> bytes | memoryview:
    constant = constants.get(name)
    if constant is None:
        raise CladaError(f"{model}: {name} is no initializer; export the model again")
    if not constant.file:
        return constant.content
    if constant.file != data_name(model):
        raise CladaError(f"{model} has its weights in {constant.file}, not in {data_name(model)}; export it again")
    held: Array = np.memmap(model.with_name(constant.file), np.uint8, "r", constant.offset, (constant.length,))
    return held.data
