"""Tables that describe an artifact or an engine."""

from dataclasses import asdict
from typing import Any

from clada.contract.artifact import Artifact
from clada.contract.engine_record import EngineRecord
from clada.contract.manifest import InputsSection, Manifest
from clada.contract.typed_json import plain
from clada.runtime.models.ort_cpu import kernels_here

_Row = tuple[str, ...]


def _table(rows: list[_Row]) -> list[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _site_rows(manifest: Manifest) -> list[_Row]:
    """Rows of the table of layers, or of products."""
    return _layer_rows(manifest) if manifest.inputs is None else _product_rows(manifest.inputs)


def _product_rows(inputs: InputsSection) -> list[_Row]:
    rows: list[_Row] = [("product", "inputs", "weights of each", "kept", "median threshold")]
    return rows + [
        (p.name, f"{p.inputs:,}", f"{p.outputs:,}", f"{p.kept:.1%}", f"{p.median_threshold:.4g}")
        for p in inputs.products
    ]


def _dial_rows(inputs: InputsSection) -> list[_Row]:
    rows: list[_Row] = [("bytes", "effort", "KL, nats", "unchanged")]
    return rows + [
        (f"{p.bytes:.1%}", f"{p.effort:.3f}", f"{p.divergence_nats:.4f}", f"{p.agreement:.1%}") for p in inputs.dial
    ]


def _layer_rows(manifest: Manifest) -> list[_Row]:
    rows: list[_Row] = [("layer", "neurons", "pool", "not computed", "median threshold")]
    layers = manifest.calibration.layers
    for index, (neurons, layer) in enumerate(zip(manifest.model.neurons, layers, strict=True)):
        share = (f"{layer.pool:.1%}", f"{layer.realised:.1%}")
        rows.append((str(index), str(neurons), *share, f"{layer.median_threshold:.4g}"))
    pool, realised = (sum(shares) / len(layers) for shares in zip(*((x.pool, x.realised) for x in layers), strict=True))
    rows.append(("mean", "", f"{pool:.1%}", f"{realised:.1%}", ""))
    return rows


def _in_place_line(artifact: Artifact) -> str:
    if artifact.in_place_model is None:
        return "in-place cache: no; one text runs on the graph for many"
    name, release = artifact.in_place_model.name, artifact.in_place_needs
    return f"in-place cache: {name}, for one text; ONNX Runtime {release} or later"


def _quantization_lines(artifact: Artifact) -> list[str]:
    quantization = artifact.quantization
    if quantization is None:
        return []
    linears = [name.rpartition(".")[2] for name in quantization.linears]
    names = ", ".join([*quantization.feed_forward, *dict.fromkeys(linears)])
    return [
        f"quantized: int{quantization.bits}, a scale for each {quantization.block_size} weights, "
        f"{quantization.method}: {names}"
    ]


def bytes_read(manifest: Manifest) -> str:
    """Share of bytes that a token reads, by calibration, and of which weights."""
    inputs, cost = manifest.inputs, manifest.calibration.ffn_cost
    if inputs is None:
        return f"{cost:.1%} of the feed-forward bytes"
    return f"{next(point.bytes for point in inputs.dial if point.effort == 1):.1%} of all weights' bytes"


def _model_lines(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    model, policy, calibration = manifest.model, manifest.policy, manifest.calibration
    goal, value = policy.goal
    types = model.dtype if model.weights is None else f"{model.dtype} with {model.weights} weights"
    parts = plain(policy.parts).items()
    return [
        f"{model.family}, {model.parameters:,} parameters, {model.layers} layers, {types}, "
        f"opset {model.opset}, context {model.context_length}",
        f"ops: {', '.join(f'{name} {v}' for name, v in manifest.ops.items())}; each with its ONNX function body",
        *_quantization_lines(artifact),
        f"policy: {policy.name}, {goal} {value}; "
        + ", ".join(part if how is True else f"{part} {how}" for part, how in parts if how),
        f"calibration: {calibration.tokens:,} tokens of {calibration.data}: {bytes_read(manifest)} read, "
        f"KL {calibration.divergence_nats:.4f} nats a token, "
        f"{calibration.agreement:.1%} of next tokens unchanged",
    ]


def facts(artifact: Artifact, record: EngineRecord | None = None) -> dict[str, Any]:
    """Facts of a checked artifact, and of an engine that was built from it, for JSON."""
    names = sorted(name for name in artifact.manifest.files if artifact.path(name).is_file())
    return {
        "path": str(artifact.model),
        "kernels": kernels_here(),
        "bytes": {name: artifact.path(name).stat().st_size for name in names},
        "manifest": plain(artifact.manifest),
        "engine": None if record is None else asdict(record),
    }


def inspection_lines(artifact: Artifact) -> list[str]:
    """Describe an artifact whose hashes have been checked."""
    manifest = artifact.manifest
    files: list[_Row] = [("file", "bytes")]
    files += [(name, f"{artifact.path(name).stat().st_size:,}") for name in sorted(manifest.files)]
    checks: list[_Row] = [("check", "needs", "allowed")]
    checks += [(c.name, f"{c.required:.1e}", f"{c.tolerance:.1e}") for c in manifest.verification]
    return [
        *_model_lines(artifact),
        _in_place_line(artifact),
        f"on this machine: {kernels_here()}",
        "",
        *_table(_site_rows(manifest)),
        *(["", *_table(_dial_rows(manifest.inputs))] if manifest.inputs is not None else []),
        "",
        *_table(files),
        "",
        *_table(checks),
    ]


def engine_lines(artifact: Artifact, record: EngineRecord) -> list[str]:
    """Describe an engine and what it was built from, both checked."""
    ops = f"plugins of clada {record.plugin_release}" if record.plugins else "function bodies"
    return [
        f"engine: {record.runtime} {record.runtime_version}, for GPUs of compute capability "
        f"{', '.join(record.compute_capability)}; {ops}",
        f"limits: batch {record.max_batch}, prompt {record.max_prompt}, text {record.capacity} tokens; cache "
        f"{record.kv_cache.replace('_', ' ')}",
        *_model_lines(artifact),
        "",
        *_table(_site_rows(artifact.manifest)),
    ]
