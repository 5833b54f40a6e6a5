"""Recognition of out-of-memory errors of ONNX Runtime, TensorRT and their libraries."""

# Of ONNX Runtime's arenas, CUDA, cuBLAS, TensorRT and the host's allocator, in lower case.
_SIGNS = (
    "out of memory",
    "outofmemory",
    "failed to allocate memory",
    "alloc_failed",
    "bad_alloc",
    "insufficient memory",
    "not enough memory",
)


def says_memory_is_full(message: str) -> bool:
    """Whether an error's message says that there is no memory left."""
    return any(sign in message.lower() for sign in _SIGNS)
