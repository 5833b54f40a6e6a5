"""ONNX side of the ops: schemas, function bodies and the translation called by torch's exporter; needs onnx."""

from clada.ops.onnx.functions import function_proto
from clada.ops.onnx.schemas import schema
from clada.ops.onnx.translations import translation

__all__ = ["function_proto", "schema", "translation"]
