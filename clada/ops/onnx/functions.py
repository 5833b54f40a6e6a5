"""ONNX function bodies, executed by runtimes without our kernels."""

from collections.abc import Mapping

import onnx.parser

from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES
from clada.ops.record import Op, check_attributes

# CastLike, Range, GreaterOrEqual and axes given as inputs: the body's statements hold from this opset on.
MINIMUM_OPSET = 18


def function_proto(op: Op, attributes: Mapping[str, str | float], opset: int) -> onnx.FunctionProto:
    """Build the op's function body for the given attribute values.

    A body cannot branch on a string, so it is written for one value of each string attribute; a model holds one
    body an op. Attributes that are numbers are read from the node.

    Args:
        op: The record.
        attributes: Value of each attribute.
        opset: Version of the standard ops; it must equal the model's.

    Raises:
        CladaError: An attribute is unknown or has a value that the op does not take.
    """
    check_attributes(op, attributes)
    names = ", ".join([*attributes, *PLUGIN_ATTRIBUTES])
    inputs = ", ".join(spec.name for spec in op.inputs)
    outputs = ", ".join(spec.name for spec in op.outputs)
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in {"": opset, **op.body_domains}.items())
    text = f"""
    <opset_import: [{imports}], domain: "{DOMAIN}">
    {op.name} <{names}> ({inputs}) => ({outputs})
    {{ {op.body(attributes)} }}
    """
    proto = onnx.parser.parse_function(text)
    proto.doc_string = op.doc
    return proto
