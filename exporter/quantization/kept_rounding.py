"""Packed weights in kept files: those that text has rounded, by themselves, or with what was calibrated after them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from clada.exporter.kept_tensors import keep_tensors, take_tensors
from clada.exporter.model.hashes import tensors_hash
from clada.exporter.quantization.quantize import Packed, QuantizationConfig, Quantized

_SUFFIX = ".rounded.safetensors"
_PRODUCT = "product"


def rounded_path(model: Path) -> Path:
    """Path of the kept weights of an ONNX file that could not be written."""
    return model.with_name(model.stem + _SUFFIX)


def packed_tensors(kind: str, packed: Mapping[str, Packed]) -> dict[str, Tensor]:
    """Tensors of packed matrices of a kind, by kind, matrix and part."""
    return {
        f"{kind} {name} {part}": getattr(matrix, part)
        for name, matrix in packed.items()
        for part in ("codes", "scales")
    }


def packed_matrices(kind: str, tensors: Mapping[str, Tensor], bits: int) -> dict[str, Packed]:
    """Packed matrices of a kind, by name, from tensors as `packed_tensors` gives them."""
    begin, end = f"{kind} ", " codes"
    names = [key[len(begin) : -len(end)] for key in tensors if key.startswith(begin) and key.endswith(end)]
    return {name: Packed(tensors[f"{kind} {name} codes"], tensors[f"{kind} {name} scales"], bits) for name in names}


def rounding_key(model: str, rows: Tensor, config: QuantizationConfig) -> str:
    """SHA-256, in hex, of everything that the rounding depends on.

    Args:
        model: That of the model's weights.
        rows: i64[N, S] calibration tokens.
        config: Options of the quantization.
    """
    return tensors_hash(json.dumps([version("clada"), model, asdict(config)]), {"rows": rows})


def keep_rounded(path: Path, key: str, quantized: Quantized) -> None:
    """Write packed weights of products to a file.

    Raises:
        CladaError: The file cannot be written.
    """
    keep_tensors(path, key, packed_tensors(_PRODUCT, quantized.products))


def take_rounded(path: Path, key: str, config: QuantizationConfig) -> Quantized | None:
    """Packed weights that were kept; None where there are none, or they are damaged or of something else."""
    taken = take_tensors(path, key)
    if taken is None:
        return None
    return Quantized(config.bits, config.block_size, products=packed_matrices(_PRODUCT, taken[0], config.bits))
