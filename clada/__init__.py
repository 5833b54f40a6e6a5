"""Dynamically sparse language models: exported from Hugging Face into one ONNX file, and run.

`export` makes an artifact of a checkpoint and needs `clada[export]`; `Session` generates from one, without torch.
"""

from typing import TYPE_CHECKING

from clada.lazy import lazy_names

if TYPE_CHECKING:
    from clada.errors import CladaError
    from clada.exporter.calibration.calibrate import CalibrationConfig
    from clada.exporter.calibration.to_file import calibrate
    from clada.exporter.export import ExportConfig, export
    from clada.runtime.generation import Completion, GenerationConfig, Piece
    from clada.runtime.prefix import Prefix
    from clada.runtime.sampling import SamplingConfig
    from clada.runtime.session import Session
    from clada.runtime.telemetry import TokenStats
    from clada.version import __version__

__all__ = [
    "CalibrationConfig",
    "CladaError",
    "Completion",
    "ExportConfig",
    "GenerationConfig",
    "Piece",
    "Prefix",
    "SamplingConfig",
    "Session",
    "TokenStats",
    "__version__",
    "calibrate",
    "export",
]

_HOMES = {
    "CalibrationConfig": "clada.exporter.calibration.calibrate",
    "CladaError": "clada.errors",
    "Completion": "clada.runtime.generation",
    "ExportConfig": "clada.exporter.export",
    "GenerationConfig": "clada.runtime.generation",
    "Piece": "clada.runtime.generation",
    "Prefix": "clada.runtime.prefix",
    "SamplingConfig": "clada.runtime.sampling",
    "Session": "clada.runtime.session",
    "TokenStats": "clada.runtime.telemetry",
    "__version__": "clada.version",
    "calibrate": "clada.exporter.calibration.to_file",
    "export": "clada.exporter.export",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
