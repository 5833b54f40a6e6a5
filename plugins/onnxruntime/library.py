"""Custom-op libraries: their paths, and their registration with a session."""

import ctypes
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from clada.errors import CladaError
from clada.plugins.native_library import library_file

# By device. Not one library: ONNX Runtime takes a domain once in a session, and the CPU's must load without CUDA.
_NAMES = {"cpu": "clada_onnxruntime", "cuda": "clada_onnxruntime_cuda"}
# Those that lie elsewhere, by device.
_elsewhere: dict[str, Path] = {}
CUDA_PROVIDER = "CUDAExecutionProvider"


def use_library(device: str, path: Path) -> None:
    """Use a device's library from another place than this installation, such as one that was built for one card."""
    _elsewhere[device] = path


def library_path(device: str = "cpu") -> Path:
    """Path of the library that `onnxruntime.SessionOptions.register_custom_ops_library` loads.

    Args:
        device: One of clada.ops.devices.DEVICES.

    Raises:
        CladaError: This installation has none.
    """
    path = _elsewhere.get(device) or library_file("clada.plugins.onnxruntime", _NAMES[device])
    if path.is_file():
        return path
    if device == "cuda":
        raise CladaError(
            f"this installation of clada has no CUDA kernels ({path.name}): they are built where that is asked for; "
            "with nvcc on the PATH set CLADA_CUDA=1 and install it again"
        )
    raise CladaError(
        f"this installation of clada has no native kernels ({path.name}): it was built with CLADA_NATIVE=none; "
        "unset it, set CLADA_ONNXRUNTIME_INCLUDE to the folder of ONNX Runtime's headers and install it again"
    )


def check_provider() -> None:
    """Raise CladaError where the installed ONNX Runtime does not support CUDA."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise CladaError(
            f"onnxruntime {onnxruntime.__version__} has no {CUDA_PROVIDER}: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )


def register(
    options: Any,
    *,
    device: str = "cpu",
    weights: str = "",
    instructions: str = "",
    element: str = "",
    exact: bool = False,
) -> None:
    """Register the kernels for sessions that are created with these options.

    Args:
        options: An `onnxruntime.SessionOptions`.
        device: One of DEVICES, that whose execution provider the session is to run on.
        weights: One of WEIGHTS; for the CPU.
        instructions: "avx512_vnni", "avx512", "avx_vnni", "avx2" or "portable", for the CPU; the best that the
            processor has where empty.
        element: "float32", "float16" or "bfloat16", for the CPU: the type T of the model's ops; kernels of every type
            where empty, and then ONNX Runtime may run a float16 op as a float32 one, its weights converted.
        exact: Whether tokens are multiplied with quantized weights in 16 bits also where 8 are faster.

    Raises:
        CladaError: There is no library, or no execution provider for it, or it does not load: it was built for
            another processor or for a newer ONNX Runtime, or does not know what was asked for.

    Example:
        >>> options = onnxruntime.SessionOptions()
        >>> register(options)
        >>> onnxruntime.InferenceSession("model.onnx", options)
    """
    path = library_path(device)
    if device == "cuda":
        check_provider()
    options.add_session_config_entry("clada.weights", weights)
    options.add_session_config_entry("clada.instructions", instructions)
    options.add_session_config_entry("clada.element", element)
    options.add_session_config_entry("clada.exact", "1" if exact else "")
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
