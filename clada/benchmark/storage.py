"""ONNX files that share weights: one file stores them, others refer to it."""

from pathlib import Path

import numpy as np
import onnx_ir
from onnx_ir.external_data import convert_tensors_to_external

# Shape constants stay in the graph, where ONNX Runtime can fold them.
_SMALL = 1024


def save_beside(model: onnx_ir.Model, path: Path) -> None:
    """Save a model; weights that are in a file of the same folder already stay there."""
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, onnx_ir.ExternalTensor)
        and value.const_value.nbytes > _SMALL
    ]
    tensors = [value.const_value for value in values if value.const_value is not None]
    external = convert_tensors_to_external(tensors, base_dir=path.parent, relative_path=f"{path.name}.data")
    for value, tensor in zip(values, external, strict=True):
        value.const_value = tensor
    onnx_ir.save(model, path)


def sizes(tensor: onnx_ir.TensorProtocol) -> list[int]:
    """Shape of a weight, in numbers."""
    return [int(size) for size in tensor.shape.numpy()]


def transposed(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    """The transpose of a matrix, computed when it is needed."""

    def compute() -> onnx_ir.TensorProtocol:
        return onnx_ir.tensor(np.ascontiguousarray(tensor.numpy().T))

    return onnx_ir.LazyTensor(compute, tensor.dtype, onnx_ir.Shape(sizes(tensor)[::-1]))


def weight(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    """Content of a value that is a weight matrix, or the transpose of one, which ONNX Runtime computes once."""
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Transpose":
        matrix = weight(producer.inputs[0])
        return None if matrix is None else transposed(matrix)
    if value is None or not value.is_initializer() or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    return value.const_value


def initializer(name: str, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
    """An initializer of a given content."""
    return onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(sizes(tensor)), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
