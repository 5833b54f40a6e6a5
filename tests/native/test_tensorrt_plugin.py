"""TensorRT plugins over emulated CUDA kernels, called as TensorRT calls them, against the op records."""

import ctypes
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from clada.ops import DOMAIN, LOAD_SIGNAL, OPS, QUANTIZED_FFN, QUANTIZED_LINEAR, VERSION
from clada.ops.record import FLOAT_TYPES, Array, Case, Op, evaluate
from gpu_suite.plugin_probe import Plugin, PluginLibrary, TensorSpec, tensors_of
from tests.native.calls import GuardedArrays, from_element, to_element
from tests.native.cases import (
    FFN_CASES,
    LINEAR_CASES,
    QUANTIZED_FFN_CASES,
    QUANTIZED_LINEAR_CASES,
    check_outputs,
    dense_case,
    rounded_case,
    sized_case,
)
from tests.native.cuda_kernels_c import ROWWISE_TOKENS, WORKSPACE_BOUNDARY
from tests.tensorrt.checks import (
    all_fields,
    check_fields,
    check_formats,
    check_output_shapes,
    check_output_types,
    complete,
    default_plugin,
    input_shapes,
    sizes_of,
)

_LIBRARIES = [Path(os.environ.get(name, "")) for name in ("CLADA_PLUGIN_PROBE_LIBRARY", "CLADA_TRT_EMULATED_LIBRARY")]
if not os.environ.get("TENSORRT_INCLUDE_DIR"):
    pytest.skip("TENSORRT_INCLUDE_DIR is not set: the plugins cannot be compiled", allow_module_level=True)

# Those that multiply matrices where there are many tokens.
TOKEN_OPS = pytest.mark.parametrize("op", [op for op in OPS.values() if op is not LOAD_SIGNAL], ids=lambda op: op.name)
ALL_OPS = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
SMALL = {"D": 32, "P": 16, "N": 1, "G": 1, "F": 8}
NODE = "node '/model/node'"
LINE = f"LoadSignal: {NODE}: field 'surprisal_weight' is missing; it must be float"


@pytest.fixture(scope="module")
def loaded() -> PluginLibrary:
    return PluginLibrary(*_LIBRARIES)


@pytest.fixture
def library(loaded):
    """With nothing logged, before or after."""
    assert loaded.log() == []
    yield loaded
    assert loaded.log() == []


def default_fields(op: Op) -> dict[str, str | float]:
    return {attribute.name: attribute.default for attribute in op.attributes}


def test_creators(library):
    creators = list(library.creators())
    assert {creator.identity for creator in creators} == {(name, str(VERSION), DOMAIN) for name in OPS}
    for creator in creators:
        assert creator.field_names() == [attribute.name for attribute in OPS[creator.name].attributes]


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        pytest.param(op, fields, id="-".join(map(str, (op.name, *fields.values()))))
        for op in OPS.values()
        for fields in all_fields(op)
    ],
)
def test_fields_survive_serializing_and_cloning(library, op, fields):
    check_fields(library, op, fields)


@ALL_OPS
def test_text_may_end_with_a_zero(library, op):
    fields = default_fields(op)
    ended = {name: value + "\0" if isinstance(value, str) else value for name, value in fields.items()}
    plugin = library.create(op, ended)
    assert plugin is not None
    assert plugin.serialized() == fields


def refused(op: Op):
    fields = default_fields(op)
    known = f"the fields are {', '.join(fields)}" if fields else "there are none"
    yield {**fields, "width": 4.0}, f"field 'width' is not known; {known}"
    for attribute in op.attributes:
        name, rest = attribute.name, {key: value for key, value in fields.items() if key != attribute.name}
        wanted = f"one of {', '.join(map(str, attribute.choices))}" if attribute.choices else "float"
        yield rest, f"field '{name}' is missing; it must be {wanted}"
        if isinstance(attribute.default, int):
            yield {**rest, name: 4.0}, f"field '{name}' has type 1 and length 1; it must be one INT32"
            yield {**rest, name: 5}, f"field '{name}' is 5; it must be {wanted}"
            continue
        wanted_type = "CHAR" if isinstance(attribute.default, str) else "one FLOAT32"
        yield {**rest, name: 1}, f"field '{name}' has type 5 and length 1; it must be {wanted_type}"
        if attribute.choices:
            yield {**rest, name: "tanh"}, f"field '{name}' is 'tanh'; it must be {wanted}"
            yield {**rest, name: ""}, f"field '{name}' is ''; it must be {wanted}"
        else:
            yield {**rest, name: float("nan")}, f"field '{name}' is nan; it must be finite"


@pytest.mark.parametrize(
    ("op", "fields", "reason"),
    [pytest.param(op, *case, id=f"{op.name}-{n}") for op in OPS.values() for n, case in enumerate(refused(op))],
)
def test_wrong_fields_are_refused(library, op, fields, reason):
    assert library.create(op, fields) is None
    assert library.log() == [f"error: {op.name}: {NODE}: {reason}"]


@pytest.fixture
def logging(library):
    yield library.give_logger
    library.give_logger()


def test_where_there_is_no_finder_errors_go_to_the_logger_of_tensorrt(library, logging):
    logging(finder=False, known=True)
    assert library.create(LOAD_SIGNAL, {}) is None
    assert library.log() == [f"error: {LINE}"]


@pytest.mark.parametrize(
    "given",
    [{"finder": False}, {"later": 1}, {"later": -1}, {"finder": False, "known": True, "later": -1}],
    ids=str,
)
def test_without_a_logger_of_the_same_release_errors_go_to_stderr(library, logging, capfd, given):
    logging(**given)
    assert library.create(LOAD_SIGNAL, {}) is None
    assert capfd.readouterr().err == f"clada: {LINE}\n"


@ALL_OPS
def test_output_shapes(library, op):
    check_output_shapes(library, op)


@ALL_OPS
def test_wrong_shapes_are_refused(library, op):
    plugin = default_plugin(library, op)
    sizes = sizes_of(op)
    shapes = input_shapes(op, sizes)
    seen: set[str] = set()
    for i, spec in enumerate(op.inputs):
        expected = ", ".join(f"{axis}={sizes[axis]}" if axis in seen else axis for axis in spec.axes)
        wrong = [shapes[i] + [1]]
        wrong += [
            [n + (axis == a) for a, n in zip(spec.axes, shapes[i], strict=True)] for axis in spec.axes if axis in seen
        ]
        for shape in wrong:
            given = [*shapes[:i], shape, *shapes[i + 1 :]]
            line = f"error: {op.name}: {spec.name} has shape {shape}, expected [{expected}]"
            tensors = [
                TensorSpec(s, "float32" if t.dtype == "T" else t.dtype) for s, t in zip(given, op.inputs, strict=True)
            ]
            tensors += tensors_of(op, sizes, "float32")[len(op.inputs) :]
            assert plugin.output_shapes(given) is None
            assert plugin.configure(tensors) == 1
            assert plugin.shape_change(tensors) == 1
            assert plugin.enqueue(tensors, [0] * len(op.inputs), [0] * len(op.outputs), 0, 0) == 1
            assert library.log() == 4 * [line]
        seen |= set(spec.axes)
    assert plugin.output_shapes(shapes[:-1]) is None
    assert library.log() == [f"error: {op.name}: it takes {len(op.inputs)} inputs, got {len(op.inputs) - 1}"]


@ALL_OPS
@pytest.mark.parametrize("float_type", FLOAT_TYPES)
def test_output_types(library, op, float_type):
    check_output_types(library, op, float_type)


@ALL_OPS
@pytest.mark.parametrize("float_type", FLOAT_TYPES)
def test_wrong_types_are_refused(library, op, float_type):
    plugin = default_plugin(library, op)
    right = tensors_of(op, sizes_of(op), float_type)
    nothing = [0] * len(op.inputs), [0] * len(op.outputs), 0, 0
    for i, spec in enumerate(op.inputs):
        wanted = "float32, float16 or bfloat16" if i == 0 else right[i].dtype
        given = [*right[:i], TensorSpec(right[i].shape, "int32"), *right[i + 1 :]]
        line = f"error: {op.name}: {spec.name} is int32, expected {wanted}"
        assert plugin.output_types([tensor.dtype for tensor in given[: len(op.inputs)]]) is None
        assert plugin.workspace(given) == 0
        assert plugin.shape_change(given) == 1
        assert plugin.enqueue(given, *nothing) == 1
        assert library.log() == 4 * [line]


@ALL_OPS
@pytest.mark.parametrize("float_type", FLOAT_TYPES)
def test_format_combinations(library, op, float_type):
    check_formats(library, op, float_type)


@TOKEN_OPS
@pytest.mark.parametrize("element", FLOAT_TYPES)
def test_workspace_is_enough_for_every_shape_of_the_profile(library, op, element):
    plugin = default_plugin(library, op)

    def workspace(batch: int, sequence: int, unknown: int | None = None) -> int:
        most = complete(op, {"B": batch, "S": sequence, "D": 160, "P": 80, "N": 5, "G": 5, "F": 300})
        sizes = {**most, **dict.fromkeys("BS", unknown)} if unknown else most
        return plugin.workspace(tensors_of(op, sizes, element, most))

    for most_batch, most_sequence in ((1, 1), (8, 1), (3, 40), (1, 9)):
        largest = workspace(most_batch, most_sequence, unknown=-1)
        shapes = itertools.product(range(1, most_batch + 1), range(1, most_sequence + 1))
        assert largest >= max(workspace(*shape) for shape in shapes)
    assert workspace(3, 40) < workspace(3, 400)


def case_sizes(op: Op, case: Case) -> dict[str, int]:
    sizes = {
        axis: size for spec in op.inputs for axis, size in zip(spec.axes, case.inputs[spec.name].shape, strict=True)
    }
    return {**sizes, **op.output_sizes(sizes, case.attributes)}


def case_plugin(library: PluginLibrary, op: Op, case: Case) -> Plugin:
    # Some cases have a whole number for a real one.
    fields = {attribute.name: type(attribute.default)(case.attributes[attribute.name]) for attribute in op.attributes}
    plugin = library.create(op, fields)
    assert plugin is not None
    return plugin


class Workspace:
    """As many bytes as a plugin asked for, as far off the boundary that its kernels need as there can be."""

    def __init__(self, size: int, garbage: int = 0xFF) -> None:
        self.memory, self._garbage = GuardedArrays(0), garbage
        self._bytes = self.memory.place_unset((1 + size,), "uint8", WORKSPACE_BOUNDARY, garbage)
        self.address = self._bytes.ctypes.data + 1

    def check(self) -> None:
        """Look for writes before it; those after it are looked for as with any memory."""
        assert self._bytes[0] == self._garbage, "written before the workspace"


def compute(plugin: Plugin, op: Op, case: Case, element: str, workspace: Workspace) -> list[Array]:
    """Outputs of a case, in float64 where they are of type T, from a plugin that was told of its sizes."""
    memory, sizes = GuardedArrays(0), case_sizes(op, case)
    inputs = [
        memory.place(to_element(case.inputs[spec.name], element) if spec.dtype == "T" else case.inputs[spec.name])
        for spec in op.inputs
    ]
    held = "uint16" if element == "bfloat16" else element
    outputs = [
        memory.place_unset(tuple(sizes[axis] for axis in spec.axes), held if spec.dtype == "T" else spec.dtype)
        for spec in op.outputs
    ]
    pointers = [[array.ctypes.data for array in arrays] for arrays in (inputs, outputs)]
    with memory.watched(), workspace.memory.watched():
        assert plugin.enqueue(tensors_of(op, sizes, element), *pointers, workspace.address, 0) == 0
    workspace.check()
    return [
        from_element(array, element) if spec.dtype == "T" else array
        for spec, array in zip(op.outputs, outputs, strict=True)
    ]


def run(library: PluginLibrary, op: Op, case: Case, element: str) -> list[Array]:
    """Outputs of a case, from a plugin as a context has it; the same whatever its workspace holds."""
    tensors = tensors_of(op, case_sizes(op, case), element)
    plugin = case_plugin(library, op, case)
    assert plugin.configure(tensors) == 0
    size = plugin.workspace(tensors)
    attached = plugin.clone().attach()
    del plugin
    assert attached.shape_change(tensors) == 0
    first, second = (compute(attached, op, case, element, Workspace(size, garbage)) for garbage in (0xFF, 0x00))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    return first


def check_case(op: Op, case: Case, outputs: list[Array], element: str) -> None:
    many_tokens = case.inputs["scale"].size > ROWWISE_TOKENS
    check_outputs(op, case, outputs, element, rounded_products=many_tokens)


@pytest.mark.parametrize("element", FLOAT_TYPES)
@pytest.mark.parametrize(("op", "case"), [*FFN_CASES, *QUANTIZED_FFN_CASES, *LINEAR_CASES, *QUANTIZED_LINEAR_CASES])
def test_matches_reference(library, op, case, element):
    case = rounded_case(case, element, element)
    check_case(op, case, run(library, op, case, element), element)


@pytest.mark.parametrize(
    ("op", "sizes", "reason"),
    [
        *(
            (op, *misfit)
            for op in QUANTIZED_FFN.values()
            for misfit in (
                ({"D": 48, "P": 24, "N": 1}, "block_size 32 does not divide the width D=48"),
                ({"D": 64, "P": 64, "N": 2}, "64 bytes a row do not fit D=64 weights of 4 bits"),
                ({"D": 64, "P": 32, "N": 1}, "1 scales a row do not fit D=64 in blocks of 32"),
            )
        ),
        (QUANTIZED_LINEAR, {"P": 24, "G": 1}, "block_size 32 does not divide the width N=48"),
        (QUANTIZED_LINEAR, {"P": 32, "G": 1}, "1 scales a row do not fit N=64 in blocks of 32"),
        # More than an integer counts.
        (QUANTIZED_LINEAR, {"P": 2**62, "G": 1}, f"block_size 32 does not divide the width N={2**63 - 2}"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", None),
)
def test_sizes_that_do_not_fit_the_quantization_are_refused(library, op, sizes, reason):
    plugin, given = default_plugin(library, op), {**sizes_of(op), **sizes}
    tensors = tensors_of(op, given, "float32")
    assert plugin.output_shapes(input_shapes(op, given)) is None
    assert plugin.configure(tensors) == 1
    assert plugin.shape_change(tensors) == 1
    assert plugin.enqueue(tensors, [0] * len(op.inputs), [0] * len(op.outputs), 0, 0) == 1
    assert library.log() == 4 * [f"error: {op.name}: {reason}"]


# Both sizes that an element has.
@pytest.mark.parametrize("element", ["float32", "float16"])
@TOKEN_OPS
def test_one_context_computes_every_shape_of_its_profile(library, op, element):
    """Prompts and steps in turn, in one workspace of the size that TensorRT requested for the largest shapes."""
    cases = [sized_case(op, *shape, 96, 37, element=element) for shape in itertools.product((1, 3), (1, 2, 17))]
    # Half types round the products that many tokens are selected by.
    cases = [case if case.inputs["scale"].size <= ROWWISE_TOKENS else dense_case(case) for case in cases]
    sizes = [case_sizes(op, case) for case in cases]
    most = {axis: max(size[axis] for size in sizes) for axis in sizes[0]}
    unknown = {**most, "B": -1, "S": -1}
    plugin = case_plugin(library, op, cases[0])
    workspace = Workspace(plugin.workspace(tensors_of(op, unknown, element, most)))
    attached = plugin.clone().attach()
    for case in (*cases, *reversed(cases)):
        assert attached.shape_change(tensors_of(op, case_sizes(op, case), element)) == 0
        check_case(op, case, compute(attached, op, case, element, workspace), element)


@pytest.mark.parametrize("element", FLOAT_TYPES)
@pytest.mark.parametrize("case", LOAD_SIGNAL.cases(), ids=lambda case: case.name)
def test_load_signal_matches_reference(library, case, element):
    case = rounded_case(case, element, element)
    outputs = run(library, LOAD_SIGNAL, case, element)
    for spec, out, expected in zip(LOAD_SIGNAL.outputs, outputs, evaluate(LOAD_SIGNAL, case), strict=True):
        assert np.abs(out - expected).max() <= LOAD_SIGNAL.tolerance["float32"] * np.abs(expected).max(), spec.name


@TOKEN_OPS
def test_plugins_of_a_context_share_a_handle_of_cublas(library, op):
    """One is made when many tokens come, one for each context, and none outlives its plugins."""
    alive = ctypes.CDLL(str(_LIBRARIES[1])).cublas_alive
    few, many = (tensors_of(op, {"B": 1, "S": tokens, **SMALL}, "float32") for tokens in (1, 9))
    node = default_plugin(library, op)
    attached = [node.attach(context) for context in (1, 1, 2)]
    attached.append(attached[0].clone())
    for tensors, expected in ((few, 0), (many, 2), (many, 2)):
        assert [plugin.shape_change(tensors) for plugin in attached] == [0] * 4
        assert alive() == expected
    del attached[2]
    assert alive() == 1
    attached.clear()
    assert alive() == 0


@TOKEN_OPS
def test_many_tokens_without_a_change_of_shape(library, op):
    plugin = default_plugin(library, op)
    tensors = tensors_of(op, {"B": 3, "S": 5, **SMALL}, "float32")
    assert plugin.enqueue(tensors, [0] * len(op.inputs), [0] * len(op.outputs), 0, 0) == 1
    assert library.log() == [f"error: {op.name}: a call of many tokens came before onShapeChange was told of it"]


@TOKEN_OPS
def test_what_cuda_refuses_is_reported(library, op):
    plugin = default_plugin(library, op)
    tensors = tensors_of(op, {"B": 1, "S": 1, "D": 2**31, "P": 2**30, "N": 2**26, "G": 2**26, "F": 8}, "float32")
    assert plugin.enqueue(tensors, [0] * len(op.inputs), [0] * len(op.outputs), 0, 0) == 1
    assert library.log() == [f"error: {op.name}: the kernels could not be launched: invalid argument"]


@pytest.mark.fault("native", "a batch, text, width or layer of no size in TensorRT", now="empty outputs, or zeros")
@TOKEN_OPS
def test_every_size_may_be_0(library, op):
    for shape in itertools.product((0, 2), (0, 1, 12), (0, 32), (0, 19)):
        if 0 in shape:
            case = sized_case(op, *shape)
            check_case(op, case, run(library, op, case, "float32"), "float32")


@pytest.mark.fault("native", "a load signal without knots in TensorRT", now="refused in one line")
@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"K": 0}, "surprisal_knots has shape [0], needs 2 values or more"),
        ({"K": 1}, "surprisal_knots has shape [1], needs 2 values or more"),
        ({"M": 0}, "scale_knots has shape [0], needs 1 values or more"),
    ],
    ids=str,
)
def test_too_few_knots_are_refused(library, sizes, reason):
    plugin, given = default_plugin(library, LOAD_SIGNAL), {**sizes_of(LOAD_SIGNAL), **sizes}
    tensors = tensors_of(LOAD_SIGNAL, given, "float32")
    assert plugin.output_shapes(input_shapes(LOAD_SIGNAL, given)) is None
    assert plugin.configure(tensors) == 1
    assert plugin.shape_change(tensors) == 1
    assert plugin.enqueue(tensors, [0] * len(LOAD_SIGNAL.inputs), [0] * len(LOAD_SIGNAL.outputs), 0, 0) == 1
    assert library.log() == 4 * [f"error: LoadSignal: {reason}"]
