"""ONNX schemas, derived from the op records."""

import onnx
from onnx.defs import OpSchema

from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, VERSION
from clada.ops.record import FLOAT_TYPES, Op, Tensor

_ONNX_NAMES = {"float32": "float"}


def _type_string(dtype: str) -> str:
    return f"tensor({_ONNX_NAMES.get(dtype, dtype)})"


def _parameter(spec: Tensor) -> OpSchema.FormalParameter:
    type_string = spec.dtype if spec.dtype == "T" else _type_string(spec.dtype)
    return OpSchema.FormalParameter(spec.name, type_string, f"[{', '.join(spec.axes)}]")


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
        type_constraints=[("T", [_type_string(t) for t in FLOAT_TYPES], "Floating-point type of the model.")],
        attributes=[
            OpSchema.Attribute(name, onnx.helper.make_attribute(name, default), "")
            for name, default in defaults.items()
        ],
    )
    onnx.defs.register_schema(registered)
    return registered
