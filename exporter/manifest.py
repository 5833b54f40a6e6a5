"""Writes the manifest: what was exported, how it was calibrated, and what verification measured."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from clada.exporter.anticipation import Anticipation
from clada.exporter.calibrate import Calibration, CalibrationConfig
from clada.exporter.patch import family_of, sparse_layers
from clada.exporter.quantization import QuantizationConfig, Quantized
from clada.exporter.rope import context_length
from clada.exporter.verify import Check
from clada.plugins.ops import LOAD_SIGNAL, QUANTIZED, VERSION
from clada.runtime.artefact import (
    FORMAT_VERSION,
    IN_PLACE_SECTION,
    MANIFEST_NAME,
    POOL_SECTION,
    POOLS_NAME,
    QUANTIZATION_SECTION,
    file_hash,
)
from clada.runtime.pieces import PIECE_BYTES, PIECES_SECTION, piece_hashes
from clada.runtime.pool import PoolPolicy, prior_name, weight_name

_TOOLS = ("clada", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def policy_section(config: CalibrationConfig, seed: int) -> dict[str, Any]:
    """The policy, what it consists of, and its goal."""
    return {"name": config.name, config.goal.name: config.goal.value, "parts": asdict(config.policy), "seed": seed}


def model_section(model: Any, parameters: int, dtype: str, opset: int) -> dict[str, Any]:
    """What was exported; `parameters` as the checkpoint has them."""
    layers = sparse_layers(model)
    return {
        "family": model.config.model_type,
        "layers": len(layers),
        "hidden_size": model.config.hidden_size,
        "neurons": [layer.neurons for layer in layers],
        "vocabulary_size": model.config.vocab_size,
        "context_length": context_length(model.config),
        "parameters": parameters,
        "dtype": dtype,
        "opset": opset,
    }


def quantization_section(config: QuantizationConfig | None, quantized: Quantized | None) -> dict[str, Any] | None:
    """How weights were quantised, and which; None where they were not."""
    if config is None or quantized is None:
        return None
    return {
        "bits": config.bits,
        "block_size": config.block_size,
        "method": config.method,
        "feed_forward": list(quantized.layers[0]),
        "linears": list(quantized.linears),
    }


def calibration_section(
    calibration: Calibration, anticipation: Anticipation | None, data: str, data_sha256: str
) -> dict[str, Any]:
    """What was calibrated on, and what it gave."""
    load_map = calibration.load_map
    return {
        "data": data,
        "data_sha256": data_sha256,
        "tokens": calibration.tokens,
        "prompt_tokens": calibration.prompt_tokens,
        "divergence_nats": calibration.divergence,
        "agreement": calibration.agreement,
        "ffn_cost": calibration.ffn_cost,
        "layers": [asdict(layer) for layer in calibration.layers],
        "scale_knots": load_map.scale_knots.tolist(),
        "reanalysis_load": load_map.reanalysis_load.item(),
        "surprisal_weight": load_map.surprisal_weight,
        "anticipation": None
        if anticipation is None
        else {"layer": anticipation.layer, "factors": anticipation.factors.tolist(), "r2": calibration.anticipation_r2},
        "gains": calibration.gains,
    }


def write_pools(folder: Path, pools: PoolPolicy) -> dict[str, Any]:
    """Write the tensors of a pool policy; returns its section of the manifest."""
    tensors = {prior_name(n): np.ascontiguousarray(prior) for n, prior in enumerate(pools.prior)}
    tensors |= {weight_name(n): np.ascontiguousarray(weight) for n, weight in enumerate(pools.weight)}
    save_file(tensors, folder / POOLS_NAME)
    return {"sizes": pools.sizes, "prior_tokens": None if np.isinf(pools.prior_tokens) else pools.prior_tokens}


def write_manifest(
    folder: Path,
    model: Any,
    *,
    model_info: dict[str, Any],
    policy: dict[str, Any],
    calibration: dict[str, Any],
    checks: list[Check],
    quantization: dict[str, Any] | None,
    in_place_onnxruntime: str | None,
    pools: PoolPolicy | None,
) -> None:
    """Write clada.json into a folder that holds all other files of the artefact.

    Args:
        folder: Where.
        model: The patched causal LM.
        model_info: See `model_section`.
        policy: See `policy_section`.
        calibration: See `calibration_section`.
        checks: What verification measured.
        quantization: See `quantization_section`.
        in_place_onnxruntime: The ONNX Runtime that the graph with an in-place cache needs; None where there is none.
        pools: How pools are chosen; None where every neuron may be used.
    """
    pool_section = None if pools is None else write_pools(folder, pools)
    op = family_of(model).op
    op_names = sorted({(op if quantization is None else QUANTIZED[op.name]).name, LOAD_SIGNAL.name})
    manifest = {
        "format_version": FORMAT_VERSION,
        "model": model_info,
        "policy": policy,
        "calibration": calibration,
        "ops": dict.fromkeys(op_names, VERSION),
        "verification": [asdict(check) for check in checks],
        "tools": {name: version(name) for name in _TOOLS},
        "files": {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    large = [path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size > PIECE_BYTES]
    if large:
        manifest[PIECES_SECTION] = {"bytes": PIECE_BYTES, "files": {path.name: piece_hashes(path) for path in large}}
    if quantization is not None:
        manifest[QUANTIZATION_SECTION] = quantization
    if pool_section is not None:
        manifest[POOL_SECTION] = pool_section
    if in_place_onnxruntime is not None:
        manifest[IN_PLACE_SECTION] = {"onnxruntime": in_place_onnxruntime, "fixed_shapes": True}
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
