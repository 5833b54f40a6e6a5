"""Writes the manifest: what was exported, how it was calibrated, and what verification measured."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clada.exporter.allocation import GRID
from clada.exporter.calibrate import DENSE_PREFIX, Calibration, CalibrationConfig
from clada.exporter.patch import family_of, sparse_layers
from clada.exporter.verify import Check
from clada.plugins.ops import LOAD_SIGNAL, VERSION
from clada.runtime.artefact import FORMAT_VERSION, IN_PLACE_SECTION, MANIFEST_NAME, file_hash

_TOOLS = ("clada", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def policy_section(config: CalibrationConfig, seed: int) -> dict[str, Any]:
    """The policy and its settings."""
    settings = asdict(config)
    del settings["target_sparsity" if config.error_budget is not None else "error_budget"]
    return {"name": "clada", **settings, "seed": seed}


def model_section(model: Any, dtype: str, opset: int) -> dict[str, Any]:
    """What was exported."""
    layers = sparse_layers(model)
    return {
        "family": model.config.model_type,
        "layers": len(layers),
        "hidden_size": model.config.hidden_size,
        "neurons": [layer.neurons for layer in layers],
        "vocabulary_size": model.config.vocab_size,
        "context_length": model.config.max_position_embeddings,
        "parameters": model.num_parameters(),
        "dtype": dtype,
        "opset": opset,
    }


def calibration_section(calibration: Calibration, data: str, data_sha256: str) -> dict[str, Any]:
    """What was calibrated on, and what it gave."""
    load_map = calibration.load_map
    return {
        "data": data,
        "data_sha256": data_sha256,
        "tokens": calibration.tokens,
        "dense_prefix": DENSE_PREFIX,
        "divergence_nats": calibration.divergence,
        "agreement": calibration.agreement,
        "cost_grid": list(GRID),
        "layers": [asdict(layer) for layer in calibration.layers],
        "scale_knots": load_map.scale_knots.tolist(),
        "reanalysis_load": load_map.reanalysis_load.item(),
        "surprisal_weight": load_map.surprisal_weight,
    }


def write_manifest(
    folder: Path,
    model: Any,
    *,
    model_info: dict[str, Any],
    policy: dict[str, Any],
    calibration: dict[str, Any],
    checks: list[Check],
    in_place_onnxruntime: str | None,
) -> None:
    """Write clada.json into a folder that holds all other files of the artefact.

    Args:
        folder: Where.
        model: The patched causal LM.
        model_info: See `model_section`.
        policy: See `policy_section`.
        calibration: See `calibration_section`.
        checks: What verification measured.
        in_place_onnxruntime: The ONNX Runtime that the graph with an in-place cache needs; None where there is none.
    """
    op_names = sorted({family_of(model).op.name, LOAD_SIGNAL.name})
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
    if in_place_onnxruntime is not None:
        manifest[IN_PLACE_SECTION] = {"onnxruntime": in_place_onnxruntime}
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
