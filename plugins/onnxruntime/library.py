"""The custom-op library: where it is, and how a session gets its kernels."""

import ctypes
from pathlib import Path
from typing import Any

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from clada.plugins.errors import CladaError

_NAME = "libclada_onnxruntime.so"
# What the FFN's weights may be held as: as the model has them, or float32 rounded to a more compact type at load.
WEIGHTS = ("", "bfloat16")


def library_path() -> Path:
    """The library that `onnxruntime.SessionOptions.register_custom_ops_library` loads.

    Raises:
        CladaError: This installation has none.
    """
    path = Path(__file__).with_name(_NAME)
    if not path.is_file():
        raise CladaError(
            f"this installation of clada has no native kernels ({_NAME}): ONNX Runtime's headers were not found "
            "when it was built; set CLADA_ONNXRUNTIME_INCLUDE to their folder and install it again"
        )
    return path


def register(options: Any, *, weights: str = "", instructions: str = "") -> None:
    """Give the kernels to sessions that are made with these options.

    Args:
        options: An `onnxruntime.SessionOptions`.
        weights: One of WEIGHTS.
        instructions: "avx512", "avx2" or "portable"; the best that the processor has where empty.

    Raises:
        CladaError: There is no library, or it does not load: it was built for another processor or for a newer
            ONNX Runtime, or does not know what was asked for.

    Example:
        >>> options = onnxruntime.SessionOptions()
        >>> register(options)
        >>> onnxruntime.InferenceSession("model.onnx", options)
    """
    path = library_path()
    options.add_session_config_entry("clada.weights", weights)
    options.add_session_config_entry("clada.instructions", instructions)
    try:
        options.register_custom_ops_library(str(path))
    except (ort_errors.Fail, ort_errors.InvalidArgument) as error:
        reason = str(error).splitlines()[0].split(" : ", 3)[-1]
        raise CladaError(f"the native kernels cannot be used: {reason}") from error


def instructions() -> str:
    """Name of the instruction set that sessions use on this processor.

    Raises:
        CladaError: There is no library, or it was built for another processor.
    """
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError as error:
        raise CladaError(f"the native kernels cannot be used: {error}") from error
    library.clada_instructions.restype = ctypes.c_char_p
    name: bytes = library.clada_instructions()
    return name.decode()
