"""How ONNX Runtime, TensorRT and what they stand on say that there is no memory left."""

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
    """Whether an error's message is that."""
    return any(sign in message.lower() for sign in _SIGNS)
