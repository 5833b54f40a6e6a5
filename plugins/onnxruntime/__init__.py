"""Native kernels of the ops as custom-op libraries of ONNX Runtime."""

from clada.plugins.onnxruntime.library import (
    CUDA_PROVIDER,
    check_provider,
    instructions,
    library_path,
    register,
    use_library,
)

__all__ = [
    "CUDA_PROVIDER",
    "check_provider",
    "instructions",
    "library_path",
    "register",
    "use_library",
]
