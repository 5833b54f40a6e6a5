"""Static sizes, known to the tracer, that the graph leaves to be inferred."""

import numpy as np
import onnx_ir


def state_known_sizes(model: onnx_ir.Model) -> None:
    """Replace the -1 of a Reshape by the size, where it is known: TensorRT cannot always infer it.

    Such are the numbers of heads, left by `view(*shape, -1, head_size)`; the Attention of opset 23 needs them.
    """
    graph = model.graph
    stated: dict[tuple[str | None, int, int], onnx_ir.Value] = {}
    for node in list(graph):
        target = node.inputs[1].producer() if node.op_type == "Reshape" and node.inputs[1] is not None else None
        shape = node.outputs[0].shape
        if target is None or target.op_type != "Concat" or shape is None or len(target.inputs) != len(shape):
            continue
        left = [at for at, part in enumerate(target.inputs) if part is not None and _is_minus_one(part)]
        at = left[0] if len(left) == 1 else None
        size = None if at is None else shape[at]
        if at is None or not isinstance(size, int):
            continue
        key = (target.outputs[0].name, at, size)
        if key not in stated:
            parts = [_constant(graph, size) if index == at else part for index, part in enumerate(target.inputs)]
            name = f"{key[0]}_of_{size}"
            concat = onnx_ir.node("Concat", parts, attributes={"axis": 0}, name=f"node_{name}")
            concat.outputs[0].name, concat.outputs[0].dtype = name, onnx_ir.DataType.INT64
            concat.outputs[0].shape = onnx_ir.Shape([len(parts)])
            # Beside the one it stands for: every later Reshape can use it.
            graph.insert_after(target, concat)
            stated[key] = concat.outputs[0]
        node.replace_input_with(1, stated[key])
        if not target.outputs[0].uses():
            graph.remove(target, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _is_minus_one(value: onnx_ir.Value) -> bool:
    constant = value.const_value
    return constant is not None and constant.size == 1 and constant.numpy().reshape(-1).tolist() == [-1]


def _constant(graph: onnx_ir.Graph, size: int) -> onnx_ir.Value:
    name = f"size_{size}"
    if name not in graph.initializers:
        graph.register_initializer(
            onnx_ir.Value(
                name=name,
                shape=onnx_ir.Shape([1]),
                type=onnx_ir.TensorType(onnx_ir.DataType.INT64),
                const_value=onnx_ir.tensor(np.array([size], np.int64), name=name),
            )
        )
    return graph.initializers[name]
