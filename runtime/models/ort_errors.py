"""Translation of ONNX Runtime's exceptions into one line of ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from clada.errors import CladaError
from clada.runtime.out_of_memory import says_memory_is_full

# Its errors have no base of their own, and which there are depends on the release; a run with a binding raises none of
# them, but RuntimeError.
ONNXRUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    MemoryError,
    RuntimeError,
)
# What it puts before a reason: its own name and a code, and which node failed.
_PREFIX = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : |Error in execution: )+")
_NODE = re.compile(r"^Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ")


def memory_is_full(error: Exception) -> bool:
    """Whether an exception of ONNX Runtime means that there is no memory left."""
    return isinstance(error, MemoryError) or says_memory_is_full(str(error))


def reason_of(error: Exception) -> str:
    """First line of an exception of ONNX Runtime, without the part that is the same in all."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    reason = _PREFIX.sub("", first)
    failed = _NODE.match(reason)
    if failed is None:
        return reason
    op, name = failed.groups()
    said = reason[failed.end() :].removeprefix(f"{op}: ")
    return f"{op} node{f' {name!r}' if name else ''}: {said}"


@contextmanager
def one_line_errors(where: str = "") -> Iterator[None]:
    """Turn exceptions of ONNX Runtime, within the context, into a CladaError of one line.

    Args:
        where: Device that it ran on, for the message; empty for the CPU.
    """
    try:
        yield
    except CladaError:
        raise
    except ONNXRUNTIME_ERRORS as error:
        reason = reason_of(error)
        if memory_is_full(error):
            memory = f"memory of the device ({where})" if where else "memory"
            raise CladaError(
                f"the {memory} is full: take fewer or shorter texts, or a smaller model: {reason}"
            ) from error
        on_device = f" on the device ({where})" if where else ""
        raise CladaError(f"ONNX Runtime {onnxruntime.__version__} failed{on_device}: {reason}") from error
