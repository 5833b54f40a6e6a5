"""Gives the native kernels odd and wrong nodes through ONNX Runtime; run in a process of its own, which may die.

A node that its record takes must give what the float64 reference gives, any other must be refused in one line. Prints
each case before it is run, so that the last line names the one that ended the process, then how many there were.
"""

import argparse
import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from clada.errors import CladaError
from clada.ops import (
    LOAD_SIGNAL,
    OPS,
    QUANTIZED,
    QUANTIZED_LINEAR,
    SPARSE_FFN,
    SPARSE_GATED_FFN,
    SPARSE_LINEAR,
)
from clada.ops.record import Array, Case, Op, Tensor, check_inputs
from clada.plugins.onnxruntime import register
from tests.native.cases import check_outputs, large_case, large_linear_case, rounded_case
from tests.support.op_backends import BFLOAT16, body_model, is_narrow, make_constant

SIZES = (0, 0, 1, 2, 3, 17, 40)
TYPES = ("float32", "float32", "float16")
OTHER_TYPES = ("float64", "float32", "float16", "int8", "uint8", "int32", "int64", "bool")
# Shapes that no memory holds, of no elements.
HUGE = 2**61


def signal_case(rng: np.random.Generator, element: str) -> Case:
    batch, vocabulary, knots, scale_knots = (int(rng.choice(SIZES)) for _ in range(4))
    inputs = {
        "logits": rng.standard_normal((batch, vocabulary)).astype(element).astype(np.float64),
        "token": rng.integers(0, vocabulary, batch) if vocabulary else np.zeros(batch, np.int64),
        **{name: np.sort(rng.uniform(0, 5, knots).astype(np.float32)) for name in ("surprisal_knots", "entropy_knots")},
        "scale_knots": rng.uniform(0, 2, scale_knots).astype(np.float32),
    }
    return Case("signal", inputs, {"surprisal_weight": 0.25})


def random_case(op: Op, rng: np.random.Generator, element: str) -> Case:
    """A case with sizes that are 0 as often as not."""
    if op is LOAD_SIGNAL:
        return signal_case(rng, element)
    batch, sequence, width, rows = (int(rng.choice(SIZES)) for _ in range(4))
    quantization, of_blocks = None, 0
    if op in QUANTIZED.values():
        quantization = int(rng.choice((4, 8))), int(rng.choice((32, 128)))
        of_blocks = int(rng.choice((0, 1, 3))) * quantization[1]
    seed = int(rng.integers(1000))
    if op in (SPARSE_LINEAR, QUANTIZED_LINEAR):
        outputs = of_blocks if quantization else rows
        return large_linear_case(batch, sequence, width, outputs, seed, element, quantization)
    plain = SPARSE_GATED_FFN if op.name.endswith("GatedFFN") else SPARSE_FFN
    if quantization:
        # Of more tokens none of the thresholds tried may be far from all, as those of quantized weights have to be.
        width, sequence = of_blocks, min(sequence, 17)
    case = large_case(plain, batch, sequence, width, rows, seed, element=element, quantization=quantization)
    # Booleans are true by any byte but 0.
    pool = case.inputs["pool"]
    odd = (pool * rng.integers(1, 256, pool.shape)).astype(np.uint8).view(np.bool_)
    return rounded_case(dataclasses.replace(case, inputs={**case.inputs, "pool": odd}), element, element)


def typed(op: Op, case: Case, element: str, narrow: bool) -> dict[str, Array]:
    def dtype(spec: Tensor) -> npt.DTypeLike:
        if spec.dtype != "T":
            return case.inputs[spec.name].dtype
        return BFLOAT16 if narrow and spec.narrow else element

    return {spec.name: case.inputs[spec.name].astype(dtype(spec)) for spec in op.inputs}


def node_model(op: Op, case: Case, inputs: dict[str, Array], element: str) -> onnx.ModelProto:
    """A model of the node alone, whose inputs have the types of the arrays and any shape."""
    model = body_model(op, element, case.attributes, 20)
    del model.functions[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.ClearField("shape")
        if value.name in inputs:
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(inputs[value.name].dtype)
    if op in QUANTIZED.values() or any(map(is_narrow, inputs.values())):
        make_constant(model, inputs)
    return model


def run(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array] | None:
    """The outputs, or None where ONNX Runtime or a kernel refuses the model or the inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    register(options, exact=True)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})
    # ONNX Runtime's errors have no base of their own.
    except Exception as error:
        assert type(error).__module__.startswith("onnxruntime"), error
        assert len(str(error).splitlines()) == 1, error
        return None


def wrong_shape(rng: np.random.Generator, op: Op, inputs: dict[str, Array], model: onnx.ModelProto) -> None:
    name = str(rng.choice(list(inputs)))
    shape = list(inputs[name].shape)
    change = rng.integers(4)
    if change == 0:
        shape[rng.integers(len(shape))] += 1
    elif change == 1:
        shape = shape[1:]
    elif change == 2:
        shape = [*shape, int(rng.integers(2))]
    else:
        shape = [size + 1 for size in shape[::-1]]
    replace(name, np.zeros(shape, inputs[name].dtype), inputs, model)


def wrong_type(rng: np.random.Generator, op: Op, inputs: dict[str, Array], model: onnx.ModelProto) -> None:
    name = str(rng.choice(list(inputs)))
    others = [dtype for dtype in OTHER_TYPES if dtype != inputs[name].dtype.name]
    replace(name, np.zeros(inputs[name].shape, rng.choice(others)), inputs, model)


def missing_input(rng: np.random.Generator, op: Op, inputs: dict[str, Array], model: onnx.ModelProto) -> None:
    names = model.graph.node[0].input
    if rng.integers(2):
        names[rng.integers(len(names))] = ""
    else:
        del names[rng.integers(len(names)) :]


def missing_attribute(rng: np.random.Generator, op: Op, inputs: dict[str, Array], model: onnx.ModelProto) -> None:
    attributes = model.graph.node[0].attribute
    names = [attribute.name for attribute in op.attributes] + ["plugin_version"]
    name = str(rng.choice(names))
    attributes.remove(next(attribute for attribute in attributes if attribute.name == name))
    if rng.integers(2):
        attributes.append(onnx.helper.make_attribute(name, [1, 2, 3]))


def huge_shape(rng: np.random.Generator, op: Op, inputs: dict[str, Array], model: onnx.ModelProto) -> None:
    """A constant of no elements, with a size that no integer holds in bits."""
    name = str(rng.choice([name for name in inputs if inputs[name].ndim == 2]))
    rank = len(next(spec for spec in op.inputs if spec.name == name).axes)
    replace(name, np.zeros([0] * rank, inputs[name].dtype), inputs, model)
    for value in list(model.graph.input):
        if value.name == name:
            model.graph.input.remove(value)
            model.graph.initializer.append(onnx.numpy_helper.from_array(inputs[name], name))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.dims[:] = [0, HUGE] if rng.integers(2) else [HUGE, 0]


def replace(name: str, array: Array, inputs: dict[str, Array], model: onnx.ModelProto) -> None:
    inputs[name] = array
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    for value in model.graph.input:
        if value.name == name:
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)


MUTATIONS: tuple[Callable[[np.random.Generator, Op, dict[str, Array], onnx.ModelProto], None], ...] = (
    wrong_shape,
    wrong_type,
    missing_input,
    missing_attribute,
    huge_shape,
)


def is_right(op: Op, inputs: dict[str, Array], case: Case) -> bool:
    """Whether the record takes the inputs, tokens included."""
    try:
        check_inputs(op, [a.shape for a in inputs.values()], [a.dtype.name for a in inputs.values()], case.attributes)
    except CladaError:
        return False
    return op is not LOAD_SIGNAL or not inputs["token"].size or bool(inputs["token"].max() < inputs["logits"].shape[1])


def fuzz(number: int) -> None:
    rng = np.random.default_rng([7, number])
    op = list(OPS.values())[number % len(OPS)]
    element = str(rng.choice(TYPES))
    case = random_case(op, rng, element)
    narrow = element == "float32" and op is SPARSE_LINEAR and bool(rng.integers(2))
    if narrow:
        case = rounded_case(case, element, "bfloat16")
    inputs = typed(op, case, element, narrow)
    model = node_model(op, case, inputs, element)
    mutation = MUTATIONS[rng.integers(len(MUTATIONS))] if rng.integers(2) else None
    if mutation:
        mutation(rng, op, inputs, model)
    shapes = " ".join(f"{name}{list(array.shape)}" for name, array in inputs.items())
    print(number, op.name, element, mutation.__name__ if mutation else "", shapes, flush=True)
    outputs = run(model, inputs)
    if mutation in (wrong_type, missing_input, missing_attribute) or not is_right(op, inputs, case):
        assert outputs is None, "taken, though it is wrong"
    elif not mutation:
        assert outputs is not None, "refused, though it is right"
        if op is LOAD_SIGNAL and not inputs["token"].size:
            assert [out.shape for out in outputs] == [(0,)] * len(op.outputs)
        else:
            check_outputs(op, case, [np.asarray(out, np.float64) for out in outputs], element)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=int)
    cases = parser.parse_args().cases
    for number in range(cases):
        fuzz(number)
    print(f"{cases} cases")


if __name__ == "__main__":
    main()
