"""Shapes to measure: those of real models, and a tiny one that takes a second."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clada.errors import CladaError
from clada.ops.record import Array


@dataclass(frozen=True)
class Shape:
    """Sizes of one model, gated with SiLU.

    Args:
        name: As the user gives it.
        hidden: D.
        neurons: F.
        heads: Number of query heads.
        key_value_heads: Number of key and value heads.
        model: Whether the whole model is measured too; the arguments after it are only for that.
        torch_model: Whether it is small enough to be measured in torch beside all the others.
        family: The configuration's `model_type`.
        layers: Number of layers.
        vocabulary: V.
    """

    name: str
    hidden: int
    neurons: int
    heads: int
    key_value_heads: int
    model: bool = False
    torch_model: bool = False
    family: str = "llama"
    layers: int = 1
    vocabulary: int = 1


# What of a shape can be measured.
WHATS = ("layer", "linears", "model", "genai")
# Those that need no whole model, and those that are measured unless others are asked for.
_OF_A_LAYER, _USUAL = WHATS[:2], ("layer", "model")
# Tokens that a whole model could hold.
MAXIMUM_CONTEXT = 4096
TINY = "tiny"
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen2.5-0.5b", 896, 4864, 14, 2, True, True, "qwen2", 24, 151_936),
        Shape("llama-3.2-1b", 2048, 8192, 32, 8, True, False, "llama", 16, 128_256),
        Shape("llama-3-8b", 4096, 14336, 32, 8),
        Shape(TINY, 128, 256, 4, 2, True, True, "llama", 2, 512),
    )
}


def chosen_shapes(names: Sequence[str], whats: Sequence[str] | None) -> list[tuple[Shape, list[str]]]:
    """Requested shapes, each with the kinds of measurement to make of it.

    Args:
        names: Of SHAPES.
        whats: Of WHATS; None is the layer and, where a shape has one, the whole model.

    Raises:
        CladaError: A shape is unknown or has no whole model to measure.
    """
    chosen = []
    for name in names:
        if name not in SHAPES:
            raise CladaError(f"no shape is called '{name}'; known are: {', '.join(SHAPES)}")
        shape = SHAPES[name]
        if not shape.model and whats is not None and set(whats) - set(_OF_A_LAYER):
            raise CladaError(f"of {name} only a layer is measured: the whole model takes too much memory")
        available = WHATS if shape.model else _OF_A_LAYER
        wanted = _USUAL if whats is None else whats
        chosen.append((shape, [what for what in available if what in wanted]))
    return chosen


def random_tokens(shape: Shape, tokens: int, seed: int) -> Array:
    """Random token ids i64[1, S]."""
    return np.random.default_rng(seed).integers(0, shape.vocabulary, (1, tokens))
