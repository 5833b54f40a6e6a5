"""Verification of an exported graph, as ONNX Runtime runs it, against the patched PyTorch model."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.errors import CladaError
from clada.exporter.calibration.text import token_rows
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import cache_shapes, first_step, next_step
from clada.exporter.graph.watched import Watched, watched
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.rope import context_length
from clada.exporter.model.sparse_products import SparseProduct, sparse_products
from clada.exporter.model.sparse_sites import Site, sparse_sites
from clada.exporter.model.steering import Steering
from clada.ops import LOAD_SIGNAL, QUANTIZED_LINEAR, graph_names
from clada.ops.torch import torch_op
from clada.runtime.models.ort_cpu import BODIES, Execution, OnnxRuntimeModel
from clada.runtime.models.ort_cpu_in_place import InPlaceModel

# Largest difference of a logit allowed, as a share of the range of the logits, for a model of one layer: each adds
# rounding of its own, and what is random adds up as its square root.
TOLERANCES = {torch.float32: 4e-5, torch.float16: 4e-3}
# Largest difference of surprisal and entropy allowed, as a share of what they are or of a nat: both sides read the same
# logits, and compute in float32 at least, summed so that the vocabulary's size does not matter.
SIGNAL_TOLERANCE = 1e-5
# Largest difference allowed of what follows from a few numbers that both sides have alike: the scale from the load, and
# the share of the weights' bytes from what was kept.
FOLLOWING_TOLERANCE = 1e-5
# Largest difference of the load allowed: it is steep where calibrated knots lie close together.
LOAD_TOLERANCES = {torch.float32: 5e-2, torch.float16: 2e-1}
# Share of the largest contribution of a layer's neurons below which one is rounding.
_NEGLIGIBLE = 1e-6
# The largest cache that is made to look at the end of a context.
_CACHE_BYTES = 2**28
PROMPT_TOKENS = 48
DECODE_STEPS = 4


@dataclass(frozen=True)
class Check:
    """Comparison of one quantity: its name, the tolerance at which it just passes, and the one it must pass at."""

    name: str
    required: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the two agree; a NaN on either side does not."""
        return self.required <= self.tolerance


def _relative(ours: Any, reference: Tensor) -> float:
    """Largest difference as a share of the range of the reference; infinite where either is not finite."""
    expected = reference.double().numpy().reshape(len(reference), -1)
    given = np.asarray(ours, np.float64).reshape(expected.shape)
    if not (np.isfinite(given).all() and np.isfinite(expected).all()):
        return float("inf")
    return float((np.abs(given - expected).max(axis=1) / np.ptp(expected, axis=1)).max())


def _run_onnx(model: OnnxRuntimeModel, step: dict[str, Any], fetch: Sequence[str]) -> dict[str, Any]:
    """Run the exported graph on the inputs of Decoder.forward; of logits, only the last position is kept."""
    names = [graph_names.INPUT_IDS, graph_names.ATTENTION_MASK, graph_names.POSITION_IDS, graph_names.PAST_LOGITS]
    inputs = {name: step[name].numpy() for name in names}
    inputs |= {graph_names.pool(n): pool.numpy() for n, pool in enumerate(step["pools"])}
    if step["effort"]:
        inputs[graph_names.EFFORT] = step["effort"][0].numpy()
    cache = model.load_cache([tensor.contiguous().numpy() for keys_values in step["past"] for tensor in keys_values])
    outputs, _ = model.step(inputs, cache, fetch)
    return outputs | {graph_names.LOGITS: outputs[graph_names.LOGITS][:, -1:]}


def scale_of_load(load: Any, scale_knots: Tensor) -> Tensor:
    """Scale f32[B] computed from a load, so that differences in the load are not attributed to the decisions."""
    at = np.linspace(0, 1, len(scale_knots))
    return torch.from_numpy(np.interp(load, at, scale_knots.double().numpy())).float()


def _decided(
    site: Site, x: Tensor, threshold: Tensor, scale: Tensor, pool: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decisions of PyTorch for one token per text x [B, D]: kept, compared magnitudes, and where they are visible.

    All are of [B, F] or [B, D]. A neuron is seen to be kept by what it adds: nothing, where its other factor is 0.
    """
    if isinstance(site, SparseProduct):
        magnitude = x.float().abs()
        kept = (magnitude != 0) & ~(magnitude < scale * threshold)
        return kept, magnitude, torch.ones_like(kept)
    weights = [site.get_parameter(name) for name in site.weight_names]
    score = torch_op(site.op)(x.unsqueeze(1), *weights, threshold, scale, pool, site.activation)[2]
    activation, other = site.activations(x)
    added = (activation.float() * other.float()).abs()
    return score > 0, activation.float().abs(), added > _NEGLIGIBLE * added.amax(-1, keepdim=True)


def _decision_gap(
    site: Site, x: Tensor, threshold: Tensor, scale: Tensor, pool: Tensor | None, kept: Tensor
) -> tuple[int, float]:
    """Number of neurons or inputs that PyTorch decides otherwise, and the largest distance of one from its threshold.

    The distance is a share of the token's largest magnitude: what rounding moves one by is.
    """
    decided, magnitude, shows = _decided(site, x.reshape(len(kept), -1), threshold, scale, pool)
    distance = (magnitude - scale * threshold).abs() / magnitude.amax(-1, keepdim=True)
    otherwise = (decided != kept) & shows
    return int(otherwise.sum()), float(distance[otherwise].max()) if otherwise.any() else 0.0


def _worse(a: float, b: float) -> float:
    """Larger of two differences; unlike `max`, NaN where either is."""
    return float(np.maximum(a, b))


@dataclass
class _Worst:
    """Largest differences of the decode steps compared so far."""

    logits: float = 0.0
    load: float = 0.0
    surprisal: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0
    following: float = 0.0
    otherwise: int = 0
    decided: int = 0

    def checks(self, label: str, model: Any, tolerance: float) -> list[Check]:
        """Comparisons found and their tolerances; `tolerance` is that of logits."""
        by_input = bool(sparse_products(model))
        what = "inputs" if by_input else "neurons"
        decisions = f"{self.otherwise} of {self.decided} {what} decided otherwise"
        following = Check(f"decode, {label}: scale, kept, {graph_names.READ}", self.following, FOLLOWING_TOLERANCE)
        return [
            Check(f"decode, {label}", self.logits, tolerance),
            Check(f"decode, {label}: {graph_names.LOAD}", self.load, LOAD_TOLERANCES[model.dtype]),
            Check(f"decode, {label}: {graph_names.SURPRISAL}", self.surprisal, SIGNAL_TOLERANCE),
            Check(f"decode, {label}: {graph_names.ENTROPY}", self.entropy, SIGNAL_TOLERANCE),
            Check(f"decode, {label}: {decisions}", self.gap, tolerance),
            *([following] if by_input else []),
        ]


@dataclass(frozen=True)
class _Exported:
    """Loaded graph, and the outputs that tell what it keeps."""

    model: OnnxRuntimeModel
    watched: Watched

    def tolerance(self, model: Any) -> float:
        """Tolerance of logits for a patched model's type and depth, as a share of their range."""
        of_a_layer = TOLERANCES[model.dtype]
        if self.watched.quantized and not self.model.kernels.startswith(BODIES):
            # Our kernels take what quantized rows are multiplied with in 16 bits, in every product.
            of_a_layer = max(of_a_layer, QUANTIZED_LINEAR.tolerance["float32"])
        return of_a_layer * math.sqrt(model.config.num_hidden_layers)


@contextmanager
def _loaded(path: Path, load: Callable[[Path], OnnxRuntimeModel]) -> Iterator[_Exported]:
    with watched(path) as found:
        yield _Exported(load(found.path), found)


def _compare_step(
    exported: _Exported, decoder: Decoder, values: dict[str, Any], step: dict[str, Any], worst: _Worst
) -> tuple[Tensor, list[Tensor]]:
    """Compare a step of decode, and note the differences; returns logits, keys and values of PyTorch.

    Rounding may move a value across its threshold, and then the two sides rightly differ. So PyTorch computes with
    what ONNX Runtime kept, which must give the same logits, and the decisions are compared by themselves: the sides
    may only disagree about a neuron or an input that is near its threshold.
    """
    calibrated, sites = decoder.calibrated, sparse_sites(decoder.model)
    batch = len(step["input_ids"])
    signal_names = [graph_names.LOAD, graph_names.SURPRISAL, graph_names.ENTROPY]
    telling = [graph_names.ACTIVE, graph_names.READ, *exported.watched.x, *dict.fromkeys(exported.watched.scale)]
    if not exported.watched.x:
        telling = [graph_names.score(n) for n in range(len(sites))]
    outputs = _run_onnx(exported.model, step, [graph_names.LOGITS, *signal_names, *telling])
    knots = [values[name] for name in (graph_names.SURPRISAL_KNOTS, graph_names.ENTROPY_KNOTS, graph_names.SCALE_KNOTS)]
    weight = calibrated.load_map.surprisal_weight
    signals = torch_op(LOAD_SIGNAL)(step["past_logits"], step["input_ids"][:, -1], *knots, weight)[1:]
    for name, signal in zip(signal_names, signals, strict=True):
        difference = np.abs(outputs[name] - signal.numpy()) / np.maximum(1, np.abs(signal.numpy()))
        setattr(worst, name, _worse(getattr(worst, name), float(difference.max())))
    scale = scale_of_load(outputs[graph_names.LOAD], values[graph_names.SCALE_KNOTS])[:, None]
    for table in values[graph_names.TOKEN_SCALE]:
        scale = table[step["input_ids"]]
    for effort in step["effort"]:
        scale = scale * effort[:, None]
    load = torch.from_numpy(outputs[graph_names.LOAD]).float()[:, None]
    if exported.watched.x:
        kept, scales = _kept_inputs(exported.watched, outputs, values, worst)
        x = [torch.from_numpy(outputs[name]) for name in exported.watched.x]
        for ours, (least, most) in zip(scales, _expected_scales(calibrated.anticipations, scale, load, x), strict=True):
            outside = torch.maximum(least - ours, ours - most).clamp_min(0) / most.abs().clamp_min(1e-3)
            worst.following = _worse(worst.following, float(outside.max()))
    else:
        kept = [torch.from_numpy(outputs[name]) > 0 for name in telling]
    inputs: list[Tensor] = [torch.empty(0)] * len(sites)
    with shown_inputs(sites, inputs.__setitem__):
        logits, present, _ = decoder.run(
            **{name: step[name] for name in ("input_ids", "attention_mask", "position_ids", "past")},
            steering=Steering(
                calibrated,
                scale=torch.zeros(batch, 1),
                pools=kept,
                sparse=torch.ones(batch, 1, dtype=torch.bool),
            ),
        )
    worst.logits = _worse(worst.logits, _relative(outputs[graph_names.LOGITS], logits))
    if not exported.watched.x:
        scales = [most for _, most in _expected_scales(calibrated.anticipations, scale, load, inputs, rounding=0)]
    for n, site in enumerate(sites):
        pool = step["pools"][n] if step["pools"] else None
        count, gap = _decision_gap(site, inputs[n], values["thresholds"][n], scales[n], pool, kept[n])
        worst.otherwise, worst.gap = worst.otherwise + count, _worse(worst.gap, gap)
    worst.decided += sum(mask.numel() for mask in kept)
    return logits, present


def _expected_scales(
    anticipations: Sequence[Anticipation],
    scale: Tensor,
    load: Tensor,
    inputs: Sequence[Tensor],
    rounding: float = FOLLOWING_TOLERANCE,
) -> list[tuple[Tensor, Tensor]]:
    """Least and largest scale f32[B, 1] that each site may have, given f32[B, 1] and the sites' inputs.

    Where a probe's sum of products is off by what rounding makes of it, a share of the products' magnitudes.
    """
    probes = {probe.site: probe for probe in anticipations}
    bounds, found = (scale, scale), []
    for site, given in enumerate(inputs):
        if site in probes:
            probe, x = probes[site], given.reshape(len(scale), 1, -1)
            magnitude = x.float().abs() @ probe.weight.abs() + load * probe.load_weight.abs() + probe.bias.abs()
            off = rounding * magnitude
            least, most = (replace(probe, bias=probe.bias + by).refined(scale, x, load) for by in (off, -off))
            bounds = least, most
        found.append(bounds)
    return found


def _kept_inputs(
    watched_graph: Watched, outputs: dict[str, Any], values: dict[str, Any], worst: _Worst
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs bool[B, D] of each product that ONNX Runtime kept, and the scales f32[B, 1] that it used.

    By the op's own rule from what the op was given, so that it is exact; what the graph says of it must agree.
    """
    batch = len(outputs[graph_names.LOAD])
    scales = [torch.from_numpy(outputs[name]).reshape(batch, -1) for name in watched_graph.scale]
    kept = []
    for name, scale, threshold in zip(watched_graph.x, scales, values["thresholds"], strict=True):
        magnitude = torch.from_numpy(outputs[name]).float().abs().reshape(batch, -1)
        kept.append((magnitude != 0) & ~(magnitude < scale * threshold))
    counts = torch.stack([mask.sum(-1) for mask in kept])
    read = values[graph_names.ROW_SHARE][0].double() @ counts.double()
    for ours, theirs in (
        (torch.from_numpy(outputs[graph_names.ACTIVE]).double(), counts.double()),
        (torch.from_numpy(outputs[graph_names.READ]).double(), read),
    ):
        worst.following = _worse(worst.following, float(((ours - theirs).abs() / theirs.abs().clamp_min(1e-3)).max()))
    return kept, scales


@torch.no_grad()
def _verify_batch(
    exported: _Exported, decoder: Decoder, values: dict[str, Any], rows: Tensor, batch: int, label: str
) -> list[Check]:
    """Compare prefill and decode of a batch of prompts, the second and later ones padded on the left."""
    model = decoder.model
    mask = torch.ones(batch, PROMPT_TOKENS, dtype=torch.int64)
    mask[1:, : PROMPT_TOKENS // 3] = 0
    step = first_step(model, rows[:batch, :PROMPT_TOKENS], mask)
    # Of each text its own, where there is one.
    step["effort"] = [torch.linspace(1, 0.5, len(effort)) for effort in step["effort"]]
    logits, present, *_ = decoder(**step, **values)
    outputs = _run_onnx(exported.model, step, [graph_names.LOGITS])
    prefill = Check(f"prefill, {label}", _relative(outputs[graph_names.LOGITS], logits), exported.tolerance(model))
    worst = _Worst()
    for at in range(PROMPT_TOKENS, PROMPT_TOKENS + DECODE_STEPS):
        step = next_step(step, rows[:batch, at : at + 1], logits, present)
        logits, present = _compare_step(exported, decoder, values, step, worst)
    return [prefill, *worst.checks(label, model, exported.tolerance(model))]


def _mixed(tensor: Tensor, places: int, generator: torch.Generator) -> Tensor:
    """Keys or values T[1, heads, places, width] of a long text, each a mixture of two of T[1, heads, P, width]."""
    one, other = torch.randint(tensor.shape[2], (2, places), generator=generator)
    share = torch.rand(places, 1, generator=generator).to(tensor.dtype)
    return tensor[:, :, one].lerp(tensor[:, :, other], share)


@torch.no_grad()
def _verify_end(
    exported: _Exported,
    decoder: Decoder,
    values: dict[str, Any],
    row: Tensor,
    past: int,
    place: int,
    label: str,
) -> list[Check]:
    """Compare a token of decode at a late position, over a cache of `past` tokens, where errors of angles are visible.

    The portable graph takes any place over a short cache; the other writes keys and values where the place is. The
    cache is mixed from the model's own keys and values of a row of text, i64[1, P]: over random ones a trained model
    is where it never is, and its layers enlarge rounding by half at each step.
    """
    model = decoder.model
    prompt, token = row[:, :PROMPT_TOKENS], row[:, PROMPT_TOKENS : PROMPT_TOKENS + 1]
    step = first_step(model, prompt, torch.ones_like(prompt))
    logits, present, *_ = decoder(**step, **values)
    generator = torch.Generator().manual_seed(0)
    long = [_mixed(tensor, past, generator) for tensor in present]
    step = next_step(step | {"attention_mask": torch.ones(1, past, dtype=torch.int64)}, token, logits, long)
    step["position_ids"] = torch.full((1, 1), place)
    worst = _Worst()
    _compare_step(exported, decoder, values, step, worst)
    return [Check(f"decode at place {place:,}, {label}", worst.logits, exported.tolerance(model))]


def _longest_past(model: Any) -> int:
    """Largest number of past tokens in a cache that verification may create, of at most _CACHE_BYTES."""
    numbers = sum(shape.heads * (shape.key_width + shape.value_width) for shape in cache_shapes(model))
    return min(context_length(model.config) - 1, _CACHE_BYTES // (numbers * model.dtype.itemsize))


def verification_rows(texts: list[str], tokenizer: Any, vocabulary: int) -> Tensor:
    """Draw two rows of real text to verify on; see `verify`."""
    length = PROMPT_TOKENS + DECODE_STEPS
    return token_rows(texts, tokenizer, vocabulary=vocabulary, tokens=2 * length, length=length)


def verify(path: Path, model: Any, calibrated: Calibrated, rows: Tensor, in_place: Path | None = None) -> list[Check]:
    """Compare an exported graph with the model it was traced from, in prefill and decode, alone and in a batch.

    Args:
        path: The portable ONNX file.
        model: The patched causal LM, in the dtype of the file.
        calibrated: The constants of the file.
        rows: i64[2, N] tokens of real text, N >= PROMPT_TOKENS + DECODE_STEPS.
        in_place: The ONNX file of the same model with an in-place cache, if it is to be compared too.

    Returns:
        The comparisons, with measured and required tolerances.
    """
    decoder, values = Decoder(model, calibrated), calibrated.tensors()
    end = context_length(model.config) - 1

    bodies = Execution(kernels="bodies", exact=True, spare_memory=True)
    with _loaded(path, lambda file: OnnxRuntimeModel(file, bodies)) as exported:
        checks = [
            check
            for batch in (1, 2)
            for check in _verify_batch(exported, decoder, values, rows, batch, f"batch {batch}")
        ]
        checks += _verify_end(exported, decoder, values, rows[:1], PROMPT_TOKENS, end, "batch 1")
        del exported  # one graph at a time holds its weights
    # And as a session runs it, on the native kernels where they are installed.
    execution = Execution(exact=True, spare_memory=True, element=str(model.dtype).removeprefix("torch."))
    if in_place is None:
        with _loaded(path, lambda file: OnnxRuntimeModel(file, execution)) as exported:
            label = f"batch 2, {exported.model.kernels}"
            return checks + _verify_batch(exported, decoder, values, rows, 2, label)
    with _loaded(in_place, lambda file: InPlaceModel(file, end + 1, execution)) as exported:
        label, past = f"in-place cache, {exported.model.kernels}", _longest_past(model)
        checks += _verify_batch(exported, decoder, values, rows, 1, label)
        return checks + _verify_end(exported, decoder, values, rows[:1], past, past, label)


def check_lines(checks: Sequence[Check]) -> list[str]:
    """Format checks as a table, one line each."""
    width = max(len(check.name) for check in checks)
    return [
        f"{check.name:<{width}}  needs {check.required:8.1e}  allowed {check.tolerance:8.1e}  "
        f"{'ok' if check.passed else 'FAILED'}"
        for check in checks
    ]


def require_passed(checks: Sequence[Check]) -> None:
    """Raise CladaError when a check has failed, with the tolerance it would need."""
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(failed, key=lambda check: check.required / check.tolerance)
        raise CladaError(
            f"ONNX Runtime and PyTorch disagree in {len(failed)} of {len(checks)} checks; the worst is "
            f"'{worst.name}': it needs a tolerance of {worst.required:.1e}, allowed is {worst.tolerance:.1e}"
        )
