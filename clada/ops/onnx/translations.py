"""Translation of an op for torch's ONNX exporter: one custom node, with the record's name and attributes."""

import inspect
from collections.abc import Callable
from typing import Any

from onnxscript.values import Op as OnnxscriptOp
from onnxscript.values import Opset

from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, VERSION
from clada.ops.onnx.schemas import schema
from clada.ops.record import Op


def translation(op: Op) -> Callable[..., Any]:
    """Build a function for `torch.onnx.export(custom_translation_table=...)`, with the op's own signature."""
    onnx_op = OnnxscriptOp(Opset(DOMAIN, VERSION), op.name, schema(op))
    input_names = [spec.name for spec in op.inputs]

    def translate(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(annotations, args, strict=False)) | kwargs
        inputs = [given[name] for name in input_names]
        attributes = {a.name: given[a.name] for a in op.attributes}
        return onnx_op(*inputs, **attributes, **PLUGIN_ATTRIBUTES)

    # The exporter reads the signature: tensors unannotated, attributes by their Python type.
    annotations: dict[str, Any] = dict.fromkeys(input_names, inspect.Parameter.empty)
    annotations |= {a.name: type(a.default) for a in op.attributes}
    translate.__name__ = op.name
    translate.__annotations__ = {k: v for k, v in annotations.items() if v is not inspect.Parameter.empty}
    translate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
            for name, annotation in annotations.items()
        ]
    )
    return translate
