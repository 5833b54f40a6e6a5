"""Record of an op, from which schema, torch op, translation, function body and tests are derived."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clada.errors import CladaError

DOMAIN = "clada"
VERSION = 1
# TensorRT's parser prefers a registered plugin over the function body only for nodes that carry these two.
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}

FLOAT_TYPES = ("float32", "float16", "bfloat16")
# The type that weights may have where all else is in float32: a float32 without its last 16 bits.
NARROW_TYPE = "bfloat16"
Array = npt.NDArray[Any]
# "data" is what an op computes with or puts out; all others belong to the model, or steer it.
Role = Literal["data", "matrix", "scales", "bias", "threshold", "knots", "scale", "pool"]


@dataclass(frozen=True)
class Tensor:
    """A named input or output.

    Args:
        name: Its name in the schema, the body and the torch op.
        dtype: A NumPy dtype name, or "T" for the op's floating-point type.
        axes: Names of its dimensions; a name stands for one size throughout an op.
        role: Its part in the op.
        of: Name of the matrix that scales or a bias belong to; empty for the other roles.
        least: The smallest size that each of its dimensions may have.
        narrow: Whether it may be in NARROW_TYPE where T is float32.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    role: Role = "data"
    of: str = ""
    least: int = 0
    narrow: bool = False


@dataclass(frozen=True)
class Attribute:
    """A named attribute; `choices` lists the values it may have, empty for any."""

    name: str
    default: str | float
    choices: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Case:
    """Inputs of one test: float64 arrays for type T, final dtypes for the rest; attributes by name."""

    name: str
    inputs: Mapping[str, Array]
    attributes: Mapping[str, str | float]


@dataclass(frozen=True)
class Op:
    """One op of the `clada` domain.

    Args:
        name: Its name, the same in ONNX, in torch and in TensorRT.
        doc: Description of its computation, with the formula.
        inputs: Its inputs, in order.
        outputs: Its outputs, in order.
        attributes: Its attributes, in order.
        reference: NumPy function of all inputs by position and attributes by keyword, returning the outputs.
            Inputs of type T are given in float64 and so are the outputs of type T and float32.
        body: Function of the attributes that returns the statements of the op's ONNX function body, in ONNX's
            textual syntax, reading the inputs and writing the outputs by their names.
        cases: Yields the sample cases, seeded.
        tolerance: Largest error allowed of a float32-accumulating kernel for each T, relative to the largest
            magnitude of the output.
        check_sizes: Raises CladaError, given the size of every axis by name and the attributes, where sizes that
            depend on others do not fit them.
        output_sizes: Of the same, the sizes by name of axes that no input has.
        body_domains: Versions, by domain, of ops that the body has besides the standard ones.
    """

    name: str
    doc: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    reference: Callable[..., tuple[Array, ...]]
    body: Callable[[Mapping[str, str | float]], str]
    cases: Callable[[], Iterator[Case]]
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2})
    check_sizes: Callable[[Mapping[str, int], Mapping[str, str | float]], None] = lambda _sizes, _attributes: None
    output_sizes: Callable[[Mapping[str, int], Mapping[str, str | float]], Mapping[str, int]] = (
        lambda _sizes, _attributes: {}
    )
    body_domains: Mapping[str, int] = field(default_factory=dict)


def names_of(op: Op, role: Role) -> list[str]:
    """Names of an op's inputs in a role, in order."""
    return [spec.name for spec in op.inputs if spec.role == role]


def bias_of(op: Op, matrix: str) -> str | None:
    """Name of the bias that belongs to a matrix of an op; None where it has none."""
    return next((spec.name for spec in op.inputs if spec.role == "bias" and spec.of == matrix), None)


def check_attributes(op: Op, attributes: Mapping[str, str | float]) -> None:
    """Raise CladaError when an attribute is unknown, missing or has a value outside its choices."""
    names = [a.name for a in op.attributes]
    if sorted(attributes) != sorted(names):
        raise CladaError(f"{op.name} takes the attributes {names}, got {sorted(attributes)}")
    for attribute in op.attributes:
        value = attributes[attribute.name]
        if attribute.choices and value not in attribute.choices:
            raise CladaError(
                f"{op.name}: {attribute.name}={value!r} is not one of {', '.join(map(str, attribute.choices))}"
            )


def check_inputs(
    op: Op, shapes: Sequence[Sequence[int]], dtypes: Sequence[str], attributes: Mapping[str, str | float]
) -> dict[str, int]:
    """Check shapes, dtype names and attributes against the record.

    Returns:
        The size of every axis by name.

    Raises:
        CladaError: Names the first input whose rank, size or dtype, or the attribute whose value does not fit, and
            what was expected.
    """
    check_attributes(op, attributes)
    if len(shapes) != len(op.inputs):
        raise CladaError(f"{op.name} takes {len(op.inputs)} inputs, got {len(shapes)}")
    sizes: dict[str, int] = {}
    float_type = next(dtype for spec, dtype in zip(op.inputs, dtypes, strict=True) if spec.dtype == "T")
    if float_type not in FLOAT_TYPES:
        raise CladaError(f"{op.name}: {op.inputs[0].name} is {float_type}, expected one of {', '.join(FLOAT_TYPES)}")
    for spec, shape, dtype in zip(op.inputs, shapes, dtypes, strict=True):
        wanted = [float_type if spec.dtype == "T" else spec.dtype]
        if spec.narrow and float_type == "float32":
            wanted.append(NARROW_TYPE)
        if dtype not in wanted:
            raise CladaError(f"{op.name}: {spec.name} is {dtype}, expected {' or '.join(wanted)}")
        known = [f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in spec.axes]
        if len(shape) != len(spec.axes) or any(
            sizes.setdefault(axis, size) != size for axis, size in zip(spec.axes, shape, strict=True)
        ):
            raise CladaError(f"{op.name}: {spec.name} has shape {list(shape)}, expected [{', '.join(known)}]")
        if any(size < spec.least for size in shape):
            raise CladaError(f"{op.name}: {spec.name} has shape {list(shape)}, needs {spec.least} values or more")
    op.check_sizes(sizes, attributes)
    return {**sizes, **op.output_sizes(sizes, attributes)}


def evaluate(op: Op, case: Case) -> tuple[Array, ...]:
    """Evaluate the float64 reference on a case.

    Raises:
        CladaError: The inputs or attributes do not fit the record.
    """
    arrays = [np.asarray(case.inputs[spec.name]) for spec in op.inputs]
    dtypes = ["float32" if spec.dtype == "T" else str(a.dtype) for spec, a in zip(op.inputs, arrays, strict=True)]
    check_inputs(op, [a.shape for a in arrays], dtypes, case.attributes)
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    with np.errstate(all="ignore"):
        return op.reference(*wide, **case.attributes)
