"""The ops in ONNX: schemas, function bodies and the translation that torch's exporter calls; needs onnx."""

from clada.plugins.onnx.functions import function_proto
from clada.plugins.onnx.schemas import schema
from clada.plugins.onnx.translations import translation

__all__ = ["function_proto", "schema", "translation"]
