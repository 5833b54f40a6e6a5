"""Weights rounded by text, kept beside the output until the artifact is there: a retry need not round them again."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from clada.contract.files import unfinished, written
from clada.exporter.model.hashes import tensors_hash
from clada.exporter.quantization.quantize import Packed, QuantizationConfig, Quantized

_SUFFIX = ".rounded.safetensors"
_KEY, _CONTENT = "key", "content"


def rounded_path(model: Path) -> Path:
    """Path of the kept weights of an ONNX file that could not be written."""
    return model.with_name(model.stem + _SUFFIX)


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
    tensors = {f"{name} codes": packed.codes.contiguous() for name, packed in quantized.products.items()}
    tensors |= {f"{name} scales": packed.scales.contiguous() for name, packed in quantized.products.items()}
    with written(path), unfinished(path) as file:
        safetensors.torch.save_file(tensors, file, {_KEY: key, _CONTENT: tensors_hash(key, tensors)})
        file.replace(path)


def take_rounded(path: Path, key: str, config: QuantizationConfig) -> Quantized | None:
    """Packed weights that were kept; None where there are none, or they are damaged or of something else."""
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
    if tensors_hash(key, tensors) != metadata.get(_CONTENT):
        return None
    names = dict.fromkeys(name.rpartition(" ")[0] for name in tensors)
    products = {name: Packed(tensors[f"{name} codes"], tensors[f"{name} scales"], config.bits) for name in names}
    return Quantized(config.bits, config.block_size, products=products)
