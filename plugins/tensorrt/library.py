"""Plugin library: its path, and the registration of its plugins with TensorRT."""

import ctypes
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clada.errors import CladaError
from clada.ops import DOMAIN, OPS, VERSION
from clada.plugins.native_library import file_name, library_file

_LIBRARY = "clada_trt"
_NAME = file_name(_LIBRARY)


def library_path() -> Path:
    """Path of the library that `trtexec --dynamicPlugins` and `IPluginRegistry::loadLibrary` load.

    Raises:
        CladaError: This installation has none.
    """
    path = library_file("clada.plugins.tensorrt", _LIBRARY)
    if not path.is_file():
        raise CladaError(
            f"this installation of clada has no TensorRT plugins ({_NAME}): they are built where that is asked for; "
            "with nvcc on the PATH set CLADA_CUDA=1 and TENSORRT_INCLUDE_DIR to the folder of NvInferRuntime.h, and "
            "install it again"
        )
    return path


def library_version(path: Path) -> str:
    """Release of clada that a plugin library belongs to.

    Raises:
        CladaError: The file is not there, does not load, or is not a plugin library of clada.
    """
    try:
        clada_version = ctypes.CDLL(str(path)).clada_version
    except OSError as error:
        raise CladaError(f"the TensorRT plugins cannot be used: {error}") from error
    except AttributeError as error:
        raise CladaError(f"{path} is not a library of clada's TensorRT plugins; use {_NAME} of this release") from error
    clada_version.restype = ctypes.c_char_p
    release: bytes = clada_version()
    return release.decode()


def register(trt: Any, path: Path | None = None) -> None:
    """Register the plugins for every parser, builder and engine of this process; a second call does nothing.

    Args:
        trt: The module, imported: `tensorrt`, `tensorrt_rtx`, or a lean or dispatch runtime's.
        path: The library; this installation's where None.

    Raises:
        CladaError: There is no library, it is of another release of clada, or TensorRT does not take it.

    Example:
        >>> import tensorrt
        >>> register(tensorrt)
    """
    # A name without a folder would be looked for among the system's libraries.
    path = (path or library_path()).resolve()
    release, ours = library_version(path), version("clada")
    if release != ours:
        raise CladaError(f"{path} is of clada {release}, and this is clada {ours}: build the plugins again")
    registry = trt.get_plugin_registry()
    if _missing(registry):
        registry.load_library(str(path))
    if missing := _missing(registry):
        raise CladaError(
            f"{trt.__name__} {trt.__version__} did not take the plugins {', '.join(missing)} from {path}: build them "
            "with the headers of this TensorRT (TENSORRT_INCLUDE_DIR)"
        )


def _missing(registry: Any) -> list[str]:
    return [name for name in OPS if registry.get_creator(name, str(VERSION), DOMAIN) is None]
