"""Optimization profiles of an engine: the shapes it takes in prefill and in decode."""

from dataclasses import dataclass
from typing import Any

from clada.contract.engine_record import DECODE, IN_PLACE, PREFILL, Profile, Shape
from clada.errors import CladaError
from clada.ops import graph_names

# Where nothing else is asked for: an engine's memory grows with both.
DEFAULT_CAPACITY = 4096
DEFAULT_MAX_PROMPT = 1024


@dataclass(frozen=True)
class Limits:
    """Limits of an engine: the largest texts it takes.

    Args:
        max_batch: Texts at once.
        max_prompt: Tokens of a prompt.
        capacity: Tokens of a text, prompt included.
    """

    max_batch: int
    max_prompt: int
    capacity: int


def limits_for(context_length: int, max_batch: int, max_prompt: int | None, capacity: int | None) -> Limits:
    """Requested limits, with defaults where none are given.

    Raises:
        CladaError: The values exclude each other, or the model takes no such text.
    """
    if capacity is None:
        capacity = min(DEFAULT_CAPACITY, context_length)
    if capacity < 2:
        raise CladaError(f"capacity is {capacity}; it must be 2 or more: a token that is read and one that follows")
    if capacity > context_length:
        raise CladaError(f"capacity is {capacity}; the model's context is {context_length}: ask for that or less")
    if max_prompt is None:
        max_prompt = min(DEFAULT_MAX_PROMPT, capacity)
    for name, value in (("max_batch", max_batch), ("max_prompt", max_prompt)):
        if value < 1:
            raise CladaError(f"{name} is {value}; it must be 1 or more")
    if max_prompt > capacity:
        raise CladaError(
            f"max_prompt is {max_prompt} and capacity {capacity}: a prompt is a part of the text, so ask for no more"
        )
    return Limits(max_batch, max_prompt, capacity)


def _sizes(batch: int, length: int, past: int) -> dict[str, int]:
    return {
        graph_names.BATCH_SIZE: batch,
        graph_names.SEQUENCE_LENGTH: length,
        graph_names.PAST_SEQUENCE_LENGTH: past,
        graph_names.TOTAL_SEQUENCE_LENGTH: past + length,
    }


def _shape(tensor: Any, sizes: dict[str, int]) -> Shape:
    """Shape of a network's input whose named dimensions have these sizes."""
    shape = []
    for index, size in enumerate(tensor.shape):
        name = tensor.get_dimension_name(index)
        if size == -1 and name not in sizes:
            raise CladaError(f"input {tensor.name} has a dimension that this release of clada does not know: {name}")
        shape.append(sizes[name] if size == -1 else int(size))
    return tuple(shape)


def profiles_for(network: Any, limits: Limits, kv_cache: str) -> list[Profile]:
    """Profiles of a parsed network, prefill first.

    Raises:
        CladaError: The network has an input that this release does not know.
    """
    batch, prompt, capacity = limits.max_batch, limits.max_prompt, limits.capacity
    # In place a step reads free slots too, and its own token has one beside them.
    most = capacity if kv_cache == IN_PLACE else capacity - 1
    # The smallest, the usual and the largest.
    ranges = {
        PREFILL: (_sizes(1, 1, 0), _sizes(batch, max(1, prompt // 2), 0), _sizes(batch, prompt, 0)),
        DECODE: (_sizes(1, 1, 1), _sizes(batch, 1, capacity // 2), _sizes(batch, 1, most)),
    }
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    profiles = []
    for name, (low, usual, high) in ranges.items():
        shapes = {t.name: (_shape(t, low), _shape(t, usual), _shape(t, high)) for t in tensors}
        profiles.append(Profile(name, shapes))
    return profiles


def add_profiles(builder: Any, config: Any, profiles: list[Profile]) -> None:
    """Add profiles to a build.

    Raises:
        CladaError: TensorRT does not take one.
    """
    for profile in profiles:
        ranges = builder.create_optimization_profile()
        for name, (low, usual, high) in profile.shapes.items():
            ranges.set_shape(name, low, usual, high)
        if config.add_optimization_profile(ranges) < 0:
            raise CladaError(f"TensorRT refuses the {profile.name} profile: lower max_batch, max_prompt or capacity")
