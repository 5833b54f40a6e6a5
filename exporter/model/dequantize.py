"""Weights of checkpoints that are quantized already, as floating point: an export rounds them anew, if at all."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from clada.errors import CladaError

# Formats that `dequantized` reads, and those that transformers dequantizes by itself as it loads.
_OF_OURS = ("awq", "gptq")
_BY_TRANSFORMERS = ("fp8", "compressed-tensors")
METHODS = _OF_OURS + _BY_TRANSFORMERS
_WORD = 32  # bits
# Place of each of a word's 4-bit numbers among eight columns, as AWQ's kernels want them.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PACKED = ".qweight"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def method_of(config: Any) -> str | None:
    """Name of a configuration's quantization; None where the weights are in floating point."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    return str(quantization.get("quant_method")) if isinstance(quantization, dict) else type(quantization).__name__


def check_method(config: Any, source: str) -> None:
    """Raise CladaError for a checkpoint whose weights are quantized in a way that cannot be undone here."""
    method = method_of(config)
    if method is None:
        return
    if method not in METHODS:
        raise CladaError(
            f"the weights of {source} are quantized ({method}), and only {', '.join(METHODS)} can be dequantized: give "
            "the model that it was made from, and --quantize int4 or int8"
        )
    if method in _OF_OURS:
        _check_settings(method, config.quantization_config, source)


def _check_settings(method: str, settings: Mapping[str, Any], source: str) -> None:
    bits, version = settings.get("bits"), str(settings.get("version", "gemm")).lower()
    if method == "awq" and (bits != 4 or version != "gemm"):
        raise CladaError(
            f"the weights of {source} are of AWQ's version {version} in {bits} bits; only gemm in 4 is read"
        )
    if method == "gptq" and bits not in (2, 4, 8):
        raise CladaError(f"the weights of {source} are of GPTQ in {bits} bits; only 2, 4 and 8 are read")


def is_ours(method: str | None) -> bool:
    """Whether `dequantized` reads the weights."""
    return method in _OF_OURS


def unpacked(words: Tensor, bits: int) -> Tensor:
    """i32[..., 32 / bits], the numbers in each word of i32[...], from the lowest bits on."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts) & (2**bits - 1)


def _awq(part: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    def columns(words: Tensor) -> Tensor:
        numbers = unpacked(words, 4)  # [R, C / 8, 8]
        return torch.empty_like(numbers).index_copy_(-1, torch.tensor(_AWQ_ORDER), numbers).flatten(-2)

    codes, zeros, scales = columns(part["qweight"]), columns(part["qzeros"]), part["scales"].float()  # [K, N], [G, N]
    group = codes.shape[0] // scales.shape[0]
    return (codes - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)


def _gptq(part: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    bits, scales = int(settings["bits"]), part["scales"].float()  # [G, N]
    codes = unpacked(part["qweight"], bits).transpose(1, 2).flatten(0, 1)  # [K, N]
    zeros = unpacked(part["qzeros"], bits).flatten(1)  # [G, N]
    if settings.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & (2**bits - 1)  # the first version of the format stores one less, around the end
    group = codes.shape[0] // scales.shape[0]
    of_row = part["g_idx"].long() if "g_idx" in part else torch.arange(codes.shape[0]) // group
    return (codes - zeros[of_row]) * scales[of_row]


_LAYERS = {"awq": _awq, "gptq": _gptq}


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                yield name, tensors.get_tensor(name)


def dequantized(files: list[Path], settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Read the weights of an AWQ or GPTQ checkpoint.

    Args:
        files: Its safetensors.
        settings: The `quantization_config` of its configuration.
        dtype: Of the result.

    Returns:
        T[N, K] of each linear layer, and the other tensors, by name.

    Raises:
        CladaError: The tensors of a layer do not fit one another.
    """
    stored = dict(_tensors(files))
    layers = [name.removesuffix(_PACKED) for name in stored if name.endswith(_PACKED)]
    weights: dict[str, Tensor] = {}
    for layer in layers:
        part = {kind: stored.pop(f"{layer}.{kind}") for kind in _PARTS if f"{layer}.{kind}" in stored}
        try:
            weight = _LAYERS[settings["quant_method"]](part, settings)
        except (IndexError, KeyError, RuntimeError) as error:
            shapes = {kind: list(tensor.shape) for kind, tensor in part.items()}
            raise CladaError(f"the quantized tensors of {layer} do not fit one another: {shapes}") from error
        weights[f"{layer}.weight"] = weight.t().contiguous().to(dtype)
    return weights | {name: tensor.to(dtype) for name, tensor in stored.items()}
