"""Runtime of CLADA artifacts; needs numpy, onnxruntime, tokenizers and jinja2, and no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clada.errors import CladaError
    from clada.runtime.generation import Completion, GenerationConfig, Piece
    from clada.runtime.sampling import SamplingConfig
    from clada.runtime.session import Session
    from clada.runtime.telemetry import TokenStats

__all__ = ["CladaError", "Completion", "GenerationConfig", "Piece", "SamplingConfig", "Session", "TokenStats"]

# Each is imported when it is first used: the command line's help needs none of ONNX Runtime.
_MODULES = {
    "clada.errors": ["CladaError"],
    "clada.runtime.generation": ["Completion", "GenerationConfig", "Piece"],
    "clada.runtime.sampling": ["SamplingConfig"],
    "clada.runtime.session": ["Session"],
    "clada.runtime.telemetry": ["TokenStats"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
