"""CUDA kernels of the ops as a library of TensorRT plugins."""

from clada.plugins.tensorrt.library import library_path, library_version, register

__all__ = ["library_path", "library_version", "register"]
