"""Calibration kept beside the output until the artifact is there, so that a retry after a failure can reuse it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clada.contract.manifest import LayerCalibration
from clada.contract.pool import PoolPolicy
from clada.exporter.calibration.calibrate import Calibration, CalibrationConfig
from clada.exporter.kept_tensors import keep_tensors, take_tensors
from clada.exporter.model.anticipation import from_named, named_tensors
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.hashes import tensors_hash
from clada.exporter.model.load_map import LoadMap
from clada.exporter.quantization.kept_rounding import packed_matrices, packed_tensors
from clada.exporter.quantization.quantize import QuantizationConfig, Quantized

_SUFFIX = ".calibration.safetensors"
# Of what is kept: a file of another one is of something else.
_LAYOUT = 2
_LOAD_MAP = tuple(field.name for field in fields(LoadMap) if field.name != "surprisal_weight")
_MEASURED = ("divergence", "agreement", "ffn_cost", "tokens", "prompt_tokens", "gains", "anticipation_r2")


def kept_path(model: Path) -> Path:
    """Path of the kept calibration of an ONNX file that could not be written."""
    return model.with_name(model.stem + _SUFFIX)


def calibration_key(
    model: Any, rows: Tensor, config: CalibrationConfig, quantization: QuantizationConfig | None
) -> str:
    """SHA-256, in hex, of everything that a calibration depends on.

    Args:
        model: The causal LM, before anything is quantized.
        rows: i64[N, S] calibration tokens.
        config: Goal of the calibration.
        quantization: Format to quantize weights to first; None for no quantization.
    """
    settings = [_LAYOUT, version("clada"), asdict(config), None if quantization is None else asdict(quantization)]
    return tensors_hash(json.dumps(settings, sort_keys=True), {"rows": rows, **model.state_dict()})


def _indexed(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{n}": tensor for n, tensor in enumerate(tensors)}


def _listed(name: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    count = sum(1 for found in tensors if found.rpartition(".")[0] == name)
    return [tensors[f"{name}.{n}"] for n in range(count)]


def keep_calibration(path: Path, key: str, calibration: Calibration, quantized: Quantized | None) -> None:
    """Write a calibration, and the weights that were quantized before it, to a file.

    Args:
        path: See `kept_path`.
        key: See `calibration_key`.
        calibration: Result of the calibration.
        quantized: The packed weights; None where nothing is quantized.

    Raises:
        CladaError: The file cannot be written.
    """
    calibrated, load_map = calibration.calibrated, calibration.calibrated.load_map
    tensors = _indexed("threshold", calibrated.thresholds) | _indexed("compensation", calibrated.compensation)
    for name in _LOAD_MAP:
        value = getattr(load_map, name)
        if value is not None:
            tensors[name] = value
    values: dict[str, Any] = {name: getattr(calibration, name) for name in _MEASURED}
    values["layers"] = [asdict(layer) for layer in calibration.layers]
    values["surprisal_weight"] = load_map.surprisal_weight
    values["anticipations"] = [anticipation.site for anticipation in calibrated.anticipations]
    tensors |= named_tensors(calibrated.anticipations)
    pools = calibration.pools
    if pools is not None:
        # JSON has no infinity.
        values["pools"] = [pools.sizes, None if math.isinf(pools.prior_tokens) else pools.prior_tokens]
        tensors |= _indexed("prior", [torch.from_numpy(a) for a in pools.prior])
        tensors |= _indexed("weight", [torch.from_numpy(a) for a in pools.weight])
    if quantized is not None:
        values["quantized"] = [quantized.bits, quantized.block_size, len(quantized.layers)]
        tensors |= packed_tensors("linear", quantized.linears)
        for n, layer in enumerate(quantized.layers):
            tensors |= packed_tensors(f"layer {n}", layer)
    keep_tensors(path, key, {name: tensor.clone() for name, tensor in tensors.items()}, json.dumps(values))


def take_calibration(path: Path, key: str) -> tuple[Calibration, Quantized | None] | None:
    """Read a calibration that was kept.

    Args:
        path: See `kept_path`.
        key: See `calibration_key`.

    Returns:
        The calibration and the packed weights; None where there is none, or it is damaged or of something else.
    """
    taken = take_tensors(path, key)
    if taken is None:
        return None
    tensors, values = taken[0], json.loads(taken[1])
    pools = None
    if "pools" in values:
        sizes, prior_tokens = values["pools"]
        prior, weight = ([t.numpy() for t in _listed(name, tensors)] for name in ("prior", "weight"))
        pools = PoolPolicy(sizes, math.inf if prior_tokens is None else prior_tokens, prior, weight)
    quantized = None
    if "quantized" in values:
        bits, block_size, count = values["quantized"]
        layers = [packed_matrices(f"layer {n}", tensors, bits) for n in range(count)]
        quantized = Quantized(bits, block_size, layers, packed_matrices("linear", tensors, bits))
    calibrated = Calibrated(
        tuple(_listed("threshold", tensors)),
        tuple(_listed("compensation", tensors)),
        from_named(values["anticipations"], tensors.__getitem__),
        load_map=LoadMap(
            **{name: tensors[name] for name in _LOAD_MAP if name in tensors},
            surprisal_weight=values["surprisal_weight"],
        ),
    )
    calibration = Calibration(
        calibrated=calibrated,
        pools=pools,
        layers=[LayerCalibration(**layer) for layer in values["layers"]],
        **{name: values[name] for name in _MEASURED},
    )
    return calibration, quantized
