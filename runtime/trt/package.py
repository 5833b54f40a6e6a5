"""Packages that build engines, and all differences between the two."""

import importlib
import re
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clada.contract.engine_choices import BODIES, PLUGINS, RUNTIMES, TENSORRT, TENSORRT_RTX, TRT_KERNELS, TrtKernels
from clada.errors import CladaError
from clada.plugins.tensorrt import library_path, register
from clada.runtime.models.cuda_driver import compute_capability
from clada.runtime.trt.timing_cache import cache_path

MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
_OLDEST = 10
# Turing: what an engine can do for it holds the others back, says TensorRT for RTX.
_ONLY_WHERE_ASKED = ("7.5",)


def load_package(runtime: str | None) -> tuple[str, Any]:
    """Import the package of a runtime, or the installed one; TensorRT before TensorRT for RTX.

    Returns:
        The runtime, and the module.

    Raises:
        CladaError: There is no such runtime, or its package is not installed, does not load or is too old.
    """
    if runtime is None:
        runtime = next((name for name in RUNTIMES if find_spec(MODULES[name])), None)
        if runtime is None:
            raise CladaError(
                "neither tensorrt nor tensorrt_rtx is installed: pip install 'clada[tensorrt]' on the GPU's machine, "
                "or 'clada[tensorrt-rtx]' anywhere"
            )
    if runtime not in RUNTIMES:
        raise CladaError(f"runtime is '{runtime}'; it must be one of {', '.join(RUNTIMES)}")
    name = MODULES[runtime]
    try:
        trt = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CladaError(f"runtime {runtime} needs {error.name}: pip install 'clada[{runtime}]'") from error
    except (ImportError, OSError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CladaError(f"{name} is installed but does not load: {first}; pip install 'clada[{runtime}]'") from error
    if runtime == TENSORRT and int(trt.__version__.split(".")[0]) < _OLDEST:
        raise CladaError(f"tensorrt is {trt.__version__}; clada builds with {_OLDEST}.0 or newer: update it")
    return runtime, trt


def _known_targets(trt: Any) -> list[str]:
    """Compute capabilities that TensorRT for RTX builds for, as "8.9"."""
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in trt.ComputeCapability.__members__)
    return [f"{name[1]}.{name[2]}" for name in names if name]


def _sm(capability: str) -> str:
    return f"sm_{capability.replace('.', '')}"


def target_names(capabilities: list[str]) -> str:
    """Compute capabilities as --target takes them."""
    return ", ".join(map(_sm, capabilities))


def targets_for(runtime: str, trt: Any, asked: tuple[str, ...]) -> list[str]:
    """Compute capabilities to build for, as "8.9".

    Args:
        runtime: Name of the package.
        trt: Its module.
        asked: As "sm_89"; where none is, those of all GPUs the package builds for but Turing, or of this machine's.

    Raises:
        CladaError: The package does not build for one, or needs a GPU and there is none.
    """
    if runtime == TENSORRT:
        if asked:
            raise CladaError(
                f"target is {', '.join(asked)}; tensorrt builds for the GPU of the machine it runs on alone: leave "
                "--target out there, or use --runtime tensorrt-rtx"
            )
        here = compute_capability()
        if here is None:
            raise CladaError(
                "tensorrt builds on the GPU that the engine is for, and the driver finds none here: see nvidia-smi, or "
                "use --runtime tensorrt-rtx, which needs none"
            )
        return [here]
    known = _known_targets(trt)
    by_name = {_sm(capability): capability for capability in known}
    unknown = [name for name in asked if name not in by_name]
    if unknown:
        raise CladaError(
            f"target is {unknown[0]}; {trt.__name__} {trt.__version__} builds for {', '.join(by_name)}: take one of "
            "those, or build on the GPU itself with --runtime tensorrt"
        )
    if asked:
        return [by_name[name] for name in dict.fromkeys(asked)]
    return [capability for capability in known if capability not in _ONLY_WHERE_ASKED]


def set_targets(runtime: str, trt: Any, config: Any, capabilities: list[str]) -> None:
    """Set the targets of a build.

    Raises:
        CladaError: TensorRT does not take it.
    """
    if runtime == TENSORRT:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
        if not config.set_compute_capability(member, index):
            raise CladaError(f"{trt.__name__} {trt.__version__} does not build for {target_names(capabilities)}")


def choose_plugins(runtime: str, trt: Any, kernels: TrtKernels) -> bool:
    """Whether ops become plugins, which are then registered, or function bodies.

    Raises:
        CladaError: Plugins were asked for and cannot be had, or the library is of another release.
    """
    if kernels not in TRT_KERNELS:
        raise CladaError(f"kernels is '{kernels}'; it must be one of {', '.join(TRT_KERNELS)}")
    if runtime == TENSORRT_RTX:
        if kernels == PLUGINS:
            raise CladaError(
                "TensorRT for RTX takes no plugins: build with --kernels bodies, or with --runtime tensorrt"
            )
        return False
    if kernels == BODIES:
        return False
    try:
        library_path()
    except CladaError as error:
        if kernels == PLUGINS:
            raise
        warnings.warn(f"the engine is of function bodies, at dense speed: {error}", stacklevel=2)
        return False
    register(trt)
    return True


def timing_cache_for(runtime: str, trt: Any, capabilities: list[str]) -> Path | None:
    """Path of the timing cache; None for TensorRT for RTX, which times nothing while it builds."""
    return cache_path(trt.__version__, capabilities[0]) if runtime == TENSORRT else None


@cache
def log_of(trt: Any) -> Any:
    """Logger of a module, one per process as TensorRT keeps the first; it prints nothing and keeps errors."""

    class Log(trt.ILogger):  # type: ignore[misc]  # known only once it is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()
