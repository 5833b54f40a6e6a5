"""Dynamically sparse language models: exported from Hugging Face into one ONNX file, and run.

`export` makes an artifact of a checkpoint and needs `clada[export]`; `Session` generates from one, without torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clada.errors import CladaError
    from clada.exporter.calibration.calibrate import CalibrationConfig
    from clada.exporter.calibration.to_file import calibrate
    from clada.exporter.export import ExportConfig, export
    from clada.runtime.generation import Completion, GenerationConfig, Piece
    from clada.runtime.sampling import SamplingConfig
    from clada.runtime.session import Session
    from clada.runtime.telemetry import TokenStats

__all__ = [
    "CalibrationConfig",
    "CladaError",
    "Completion",
    "ExportConfig",
    "GenerationConfig",
    "Piece",
    "SamplingConfig",
    "Session",
    "TokenStats",
    "__version__",
    "calibrate",
    "export",
]

# Each is imported when it is first used: the runtime needs no torch, and the command line's help no ONNX Runtime.
_HOMES = {
    "CalibrationConfig": "clada.exporter.calibration.calibrate:CalibrationConfig",
    "CladaError": "clada.errors:CladaError",
    "Completion": "clada.runtime.generation:Completion",
    "ExportConfig": "clada.exporter.export:ExportConfig",
    "GenerationConfig": "clada.runtime.generation:GenerationConfig",
    "Piece": "clada.runtime.generation:Piece",
    "SamplingConfig": "clada.runtime.sampling:SamplingConfig",
    "Session": "clada.runtime.session:Session",
    "TokenStats": "clada.runtime.telemetry:TokenStats",
    "calibrate": "clada.exporter.calibration.to_file:calibrate",
    "export": "clada.exporter.export:export",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("clada")
        except PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
