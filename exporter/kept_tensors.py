"""Tensors kept in a file beside the output until the artifact is there: a retry after a failure can take them."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from clada.contract.files import unfinished, written
from clada.exporter.model.hashes import tensors_hash

_KEY, _VALUES, _CONTENT = "key", "values", "content"


def keep_tensors(path: Path, key: str, tensors: Mapping[str, Tensor], values: str = "") -> None:
    """Write tensors to a file.

    Args:
        path: The file.
        key: SHA-256 of all that they depend on.
        tensors: By name; none may share memory with another.
        values: What is kept with them.

    Raises:
        CladaError: The file cannot be written.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {_KEY: key, _VALUES: values, _CONTENT: tensors_hash(values, whole)}
    with written(path), unfinished(path) as file:
        safetensors.torch.save_file(whole, file, metadata)
        file.replace(path)


def take_tensors(path: Path, key: str) -> tuple[dict[str, Tensor], str] | None:
    """Tensors that were kept, and the values with them; None where there are none, or damaged or of another key."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(_KEY) != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, safetensors.SafetensorError):
        return None
    values = metadata.get(_VALUES, "")
    return (tensors, values) if tensors_hash(values, tensors) == metadata.get(_CONTENT) else None
