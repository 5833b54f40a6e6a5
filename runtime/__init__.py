"""Runtime of CLADA artifacts; needs numpy, onnxruntime, tokenizers, safetensors and jinja2, and no torch."""

from typing import TYPE_CHECKING

from clada.lazy import lazy_names

if TYPE_CHECKING:
    from clada.errors import CladaError
    from clada.runtime.generation import Completion, GenerationConfig, Piece
    from clada.runtime.prefix import Prefix
    from clada.runtime.sampling import SamplingConfig
    from clada.runtime.session import Session
    from clada.runtime.telemetry import TokenStats

__all__ = ["CladaError", "Completion", "GenerationConfig", "Piece", "Prefix", "SamplingConfig", "Session", "TokenStats"]

_HOMES = {
    "CladaError": "clada.errors",
    "Completion": "clada.runtime.generation",
    "GenerationConfig": "clada.runtime.generation",
    "Piece": "clada.runtime.generation",
    "Prefix": "clada.runtime.prefix",
    "SamplingConfig": "clada.runtime.sampling",
    "Session": "clada.runtime.session",
    "TokenStats": "clada.runtime.telemetry",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
