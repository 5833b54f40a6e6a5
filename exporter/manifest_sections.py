"""Sections of the manifest: the exported model, its calibration, and the results of verification."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from clada.contract.artifact import POOLS_NAME
from clada.contract.files import file_hash
from clada.contract.manifest import (
    MANIFEST_NAME,
    AnticipationSection,
    CalibrationSection,
    CheckSection,
    InPlaceSection,
    InputsSection,
    Manifest,
    ModelSection,
    PiecesSection,
    PolicySection,
    PoolSection,
    ProbeSection,
    ProductSection,
    QuantizationSection,
    manifest_bytes,
    parse_manifest,
)
from clada.contract.pieces import PIECE_BYTES, piece_hashes
from clada.contract.pool import PoolPolicy, prior_name, weight_name
from clada.exporter.calibration.calibrate import Calibration, CalibrationConfig
from clada.exporter.calibration.price_calibration import PriceCalibration, PriceChoice
from clada.exporter.defaults import COMPUTES_IN
from clada.exporter.model.patch import sparse_layers
from clada.exporter.model.rope import context_length
from clada.exporter.model.sparse_sites import sparse_sites
from clada.exporter.quantization.quantize import QuantizationConfig, Quantized
from clada.exporter.verify import Check
from clada.ops import LOAD_SIGNAL, QUANTIZED, VERSION

_TOOLS = ("clada", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def policy_section(config: CalibrationConfig, seed: int) -> PolicySection:
    """Section of the policy, its parts and its goal."""
    goal: dict[str, Any] = {config.goal.name: config.goal.value}
    return PolicySection(name=config.policy_name, parts=config.rules, seed=seed, **goal)


def model_section(model: Any, parameters: int, dtype: str, opset: int) -> ModelSection:
    """Section of the exported model; `parameters` as the checkpoint has them, `dtype` that of the weights."""
    computes_in = COMPUTES_IN[dtype]
    values: dict[str, Any] = {"dtype": computes_in, "weights": None if dtype == computes_in else dtype}
    return ModelSection(
        family=model.config.model_type,
        layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        neurons=tuple(layer.neurons for layer in sparse_layers(model)),
        vocabulary_size=model.config.vocab_size,
        context_length=context_length(model.config),
        parameters=parameters,
        opset=opset,
        **values,
    )


def quantization_section(config: QuantizationConfig | None, quantized: Quantized | None) -> QuantizationSection | None:
    """Section of the quantized weights; None where there are none."""
    if config is None or quantized is None:
        return None
    values: dict[str, Any] = {"method": config.method}
    return QuantizationSection(
        bits=config.bits,
        block_size=config.block_size,
        feed_forward=tuple(quantized.layers[0]) if quantized.layers else (),
        linears=(*quantized.linears, *quantized.products),
        **values,
    )


def calibration_section(calibration: Calibration, data: str, data_sha256: str) -> CalibrationSection:
    """Section of the calibration: its text and its measurements."""
    load_map = calibration.calibrated.load_map
    probe = None
    for anticipation in calibration.calibrated.anticipations:
        probe = AnticipationSection(
            anticipation.site, tuple(anticipation.factors.tolist()), calibration.anticipation_r2
        )
    return CalibrationSection(
        data=_printable(data),
        data_sha256=data_sha256,
        tokens=calibration.tokens,
        prompt_tokens=calibration.prompt_tokens,
        divergence_nats=calibration.divergence,
        agreement=calibration.agreement,
        ffn_cost=calibration.ffn_cost,
        layers=tuple(calibration.layers),
        scale_knots=tuple(load_map.scale_knots.tolist()),
        reanalysis_load=load_map.reanalysis_load.item(),
        surprisal_weight=load_map.surprisal_weight,
        anticipation=probe,
        gains=calibration.gains,
    )


def price_section(
    calibration: PriceCalibration, choice: PriceChoice, data: str, data_sha256: str
) -> CalibrationSection:
    """Section of the calibration by price: its text, and the measurements at the chosen price."""
    load_map = calibration.load_map
    return CalibrationSection(
        data=_printable(data),
        data_sha256=data_sha256,
        tokens=calibration.tokens,
        prompt_tokens=calibration.prompt_tokens,
        divergence_nats=choice.chosen.divergence_nats,
        agreement=choice.chosen.agreement,
        ffn_cost=None,
        layers=(),
        scale_knots=tuple(load_map.scale_knots.tolist()),
        reanalysis_load=load_map.reanalysis_load.item(),
        surprisal_weight=load_map.surprisal_weight,
        anticipation=None,
        gains=calibration.gains,
    )


def inputs_section(calibration: PriceCalibration, choice: PriceChoice) -> InputsSection:
    """Section of the skipped inputs."""
    products = [worth.product for worth in calibration.worths]
    return InputsSection(
        price=choice.price,
        products=tuple(
            ProductSection(product.name, product.inputs, product.outputs, kept, float(threshold.median()))
            for product, kept, threshold in zip(products, choice.kept, choice.thresholds, strict=True)
        ),
        dial=tuple(choice.dial),
        probes=tuple(
            ProbeSection(anticipation.site, tuple(anticipation.factors.tolist()), explained)
            for anticipation, explained in zip(calibration.anticipations, calibration.explained, strict=True)
        ),
    )


def write_pools(folder: Path, pools: PoolPolicy) -> PoolSection:
    """Write the tensors of a pool policy; returns its section of the manifest."""
    tensors = {prior_name(n): np.ascontiguousarray(prior) for n, prior in enumerate(pools.prior)}
    tensors |= {weight_name(n): np.ascontiguousarray(weight) for n, weight in enumerate(pools.weight)}
    # Not by safetensors' own writer, whose files only their owner may read.
    (folder / POOLS_NAME).write_bytes(save(tensors))
    return PoolSection(tuple(pools.sizes), None if np.isinf(pools.prior_tokens) else pools.prior_tokens)


def write_manifest(
    folder: Path,
    model: Any,
    *,
    model_info: ModelSection,
    policy: PolicySection,
    calibration: CalibrationSection,
    checks: list[Check],
    quantization: QuantizationSection | None,
    in_place_onnxruntime: str | None,
    pools: PoolPolicy | None = None,
    inputs: InputsSection | None = None,
) -> None:
    """Write clada.json into a folder that holds all other files of the artifact.

    Args:
        folder: Where.
        model: The patched causal LM.
        model_info: See `model_section`.
        policy: See `policy_section`.
        calibration: See `calibration_section`.
        checks: Results of verification.
        quantization: See `quantization_section`.
        in_place_onnxruntime: The ONNX Runtime that the graph with an in-place cache needs; None where there is none.
        pools: Policy of the pools; None where every neuron may be used.
        inputs: Settings by which inputs are skipped; None where neurons are.

    Raises:
        CladaError: A value is not what a manifest may hold; nothing is written then.
    """
    pool_section = None if pools is None else write_pools(folder, pools)
    op = sparse_sites(model)[0].op
    op_names = sorted({(op if quantization is None else QUANTIZED[op.name]).name, LOAD_SIGNAL.name})
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    large = {path.name: tuple(piece_hashes(path)) for path in files if path.stat().st_size > PIECE_BYTES}
    manifest = Manifest(
        model=model_info,
        policy=policy,
        calibration=calibration,
        ops=dict.fromkeys(op_names, VERSION),
        verification=tuple(CheckSection(check.name, check.required, check.tolerance) for check in checks),
        tools={name: version(name) for name in _TOOLS},
        files={path.name: file_hash(path) for path in files},
        pieces=PiecesSection(PIECE_BYTES, large) if large else None,
        quantization=quantization,
        pool=pool_section,
        in_place_cache=None if in_place_onnxruntime is None else InPlaceSection(in_place_onnxruntime, True),
        inputs=inputs,
    )
    content, path = manifest_bytes(manifest), folder / MANIFEST_NAME
    parse_manifest(content, path)  # what cannot be read must not be written
    path.write_bytes(content)
