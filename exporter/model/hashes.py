"""Hashes of a model's weights and of tensors by name, which tell whether what was kept is of them."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clada.exporter.model.held_weights import named_weights


def model_hash(model: Any) -> str:
    """SHA-256, in hex, of the names, types and values of a model's weights."""
    return _hash("", named_weights(model))


def tensors_hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of a text and of tensors by name."""
    return _hash(text, {name: tensor.detach for name, tensor in tensors.items()})


def _hash(text: str, tensors: Mapping[str, Callable[[], Tensor]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, values in sorted(tensors.items()):
        tensor = values()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
