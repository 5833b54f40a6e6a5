"""Backends that execute one op on NumPy inputs: each takes a record, inputs in their final dtypes, attributes."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch

from clada.errors import CladaError
from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, QUANTIZED, VERSION, Op
from clada.ops.onnx import function_proto
from clada.ops.record import Array
from clada.ops.torch import torch_op
from clada.plugins.onnxruntime import register

OPSETS = (20, 23)
# NumPy has no such type of its own.
BFLOAT16 = onnx_ir.DataType.BFLOAT16.numpy()


def _is_there(instructions: str) -> bool:
    try:
        register(onnxruntime.SessionOptions(), instructions=instructions)
    except CladaError:
        return False
    return True


# Those that this machine has.
INSTRUCTIONS = tuple(filter(_is_there, ("avx512_vnni", "avx512", "avx_vnni", "avx2", "portable")))


def body_model(op: Op, dtype: str, attributes: Mapping[str, str | float], opset: int) -> onnx.ModelProto:
    """A model of one node of the op, with its function body, all dimensions dynamic."""

    def value_info(spec):
        name = dtype if spec.dtype == "T" else spec.dtype
        return onnx.helper.make_tensor_value_info(
            spec.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)), list(spec.axes)
        )

    node = onnx.helper.make_node(
        op.name,
        [spec.name for spec in op.inputs],
        [spec.name for spec in op.outputs],
        domain=DOMAIN,
        **attributes,
        **PLUGIN_ATTRIBUTES,
    )
    graph = onnx.helper.make_graph(
        [node], op.name, [value_info(s) for s in op.inputs], [value_info(s) for s in op.outputs]
    )
    domains = {"": opset, DOMAIN: VERSION, **op.body_domains}
    return onnx.helper.make_model(
        graph,
        functions=[function_proto(op, attributes, opset)],
        opset_imports=[onnx.helper.make_opsetid(*domain) for domain in domains.items()],
        ir_version=10,
    )


def is_narrow(array: Array) -> bool:
    """Whether an array is in bfloat16, which ONNX Runtime's Python API takes in no input."""
    return array.dtype == BFLOAT16


def make_constant(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    """Turn the inputs that are weights or scales into initializers, as kernels want them that pack at load."""
    for value in list(model.graph.input):
        if value.name.partition("_")[0] in ("w", "s"):
            model.graph.input.remove(value)
            model.graph.initializer.append(onnx.numpy_helper.from_array(inputs[value.name], value.name))


def run_onnxruntime(
    model: onnx.ModelProto, op: Op, inputs: list[Array], instructions: str | None = None, threads: int = 1
) -> list[Array]:
    """Run a model of one node in ONNX Runtime: its function body, or the native kernel for an instruction set."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if instructions is not None:
        register(options, instructions=instructions, exact=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {spec.name: a for spec, a in zip(op.inputs, inputs, strict=True)}
    return session.run(None, {value.name: given[value.name] for value in session.get_inputs()})


def run_body(op: Op, inputs: list[Array], attributes: Mapping[str, str | float], opset: int) -> list[Array]:
    """Run the function body in ONNX Runtime."""
    model = body_model(op, str(inputs[0].dtype), attributes, opset)
    if any(map(is_narrow, inputs)):
        make_constant(model, dict(zip((spec.name for spec in op.inputs), inputs, strict=True)))
    onnx.checker.check_model(model, full_check=True)
    return run_onnxruntime(model, op, inputs)


def run_native(
    op: Op, inputs: list[Array], attributes: Mapping[str, str | float], instructions: str, threads: int
) -> list[Array]:
    """Run the native kernel in ONNX Runtime; there is no body that could take its place."""
    model = body_model(op, str(inputs[0].dtype), attributes, OPSETS[0])
    del model.functions[:]
    if op in QUANTIZED.values() or any(map(is_narrow, inputs)):
        make_constant(model, dict(zip((spec.name for spec in op.inputs), inputs, strict=True)))
    return run_onnxruntime(model, op, inputs, instructions, threads)


def run_torch(op: Op, inputs: list[Array], attributes: Mapping[str, str | float]) -> list[Array]:
    """Run the registered torch op."""
    tensors = [
        torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16) if is_narrow(a) else torch.from_numpy(a)
        for a in inputs
    ]
    return [t.numpy() for t in torch_op(op)(*tensors, *attributes.values())]


Backend = Callable[[Op, list[Array], Mapping[str, str | float]], list[Array]]
# Those of ONNX Runtime.
FILE_BACKENDS: dict[str, Backend] = {f"body-opset{opset}": partial(run_body, opset=opset) for opset in OPSETS} | {
    f"native-{instructions}-{threads}": partial(run_native, instructions=instructions, threads=threads)
    for instructions in INSTRUCTIONS
    for threads in (1, 2)
    # The two that differ for quantized weights alone, on one number of threads.
    if threads == 1 or "vnni" not in instructions
}
BACKENDS: dict[str, Backend] = {"torch": run_torch} | FILE_BACKENDS
