"""Runs CLADA artefacts; needs numpy, onnxruntime, tokenizers and jinja2, and no torch."""

from clada.plugins.errors import CladaError
from clada.runtime.generation import Completion, GenerationConfig, Piece
from clada.runtime.sampling import SamplingConfig
from clada.runtime.session import Session
from clada.runtime.telemetry import TokenStats

__all__ = ["CladaError", "Completion", "GenerationConfig", "Piece", "SamplingConfig", "Session", "TokenStats"]
