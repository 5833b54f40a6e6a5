"""ONNX schemas, derived from the op records."""

from collections.abc import Iterator

import onnx
from onnx.defs import OpSchema

from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, VERSION
from clada.ops.record import FLOAT_TYPES, NARROW_TYPE, Op, Tensor

_ONNX_NAMES = {"float32": "float"}
# Name of the type of weights that may be narrower than T.
_WEIGHTS = "W"


def _type_string(dtype: str) -> str:
    return f"tensor({_ONNX_NAMES.get(dtype, dtype)})"


def _parameter(spec: Tensor) -> OpSchema.FormalParameter:
    generic = _WEIGHTS if spec.narrow else spec.dtype
    type_string = generic if spec.dtype == "T" else _type_string(spec.dtype)
    return OpSchema.FormalParameter(spec.name, type_string, f"[{', '.join(spec.axes)}]")


def _type_constraints(op: Op) -> Iterator[tuple[str, list[str], str]]:
    types = [_type_string(t) for t in FLOAT_TYPES]
    yield "T", types, "Floating-point type of the model."
    if any(spec.narrow for spec in op.inputs):
        yield _WEIGHTS, types, f"T, or {NARROW_TYPE} where that is float32."


def schema(op: Op) -> OpSchema:
    """Schema of the op, registered with onnx on first use so that its checker knows the op."""
    if onnx.defs.has(op.name, DOMAIN):
        return onnx.defs.get_schema(op.name, VERSION, DOMAIN)
    defaults = {a.name: a.default for a in op.attributes} | PLUGIN_ATTRIBUTES
    registered = OpSchema(
        op.name,
        DOMAIN,
        VERSION,
        op.doc,
        inputs=[_parameter(spec) for spec in op.inputs],
        outputs=[_parameter(spec) for spec in op.outputs],
        type_constraints=list(_type_constraints(op)),
        attributes=[
            OpSchema.Attribute(name, onnx.helper.make_attribute(name, default), "")
            for name, default in defaults.items()
        ],
    )
    onnx.defs.register_schema(registered)
    return registered
