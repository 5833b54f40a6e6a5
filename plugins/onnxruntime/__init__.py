"""The native kernels of the ops as a custom-op library of ONNX Runtime."""

from clada.plugins.onnxruntime.library import WEIGHTS, instructions, library_path, register

__all__ = ["WEIGHTS", "instructions", "library_path", "register"]
