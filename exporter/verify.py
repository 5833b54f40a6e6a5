"""Compares an exported graph, as ONNX Runtime runs it, with the patched PyTorch model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.exporter.anticipation import Anticipation
from clada.exporter.calibration_text import token_rows
from clada.exporter.decoder import Decoder, LoadMap
from clada.exporter.neurons import activations
from clada.exporter.patch import SparseLayer, Sparsity, sparse_layers
from clada.exporter.steps import constants, first_step, next_step
from clada.plugins import graph
from clada.plugins.errors import CladaError
from clada.plugins.ops import DOMAIN, LOAD_SIGNAL
from clada.plugins.torch import torch_op
from clada.runtime.artefact import data_name
from clada.runtime.backends.in_place import InPlaceModel
from clada.runtime.backends.onnxruntime import Execution, OnnxRuntimeModel
from clada.runtime.graph_constants import GraphConstants
from clada.runtime.onnx_file import nodes_of
from clada.runtime.pool import PoolPolicy, choose_pools, overdue, update_pools

# Largest difference of a logit allowed, as a share of the range of the logits.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
# Largest difference of the load allowed: it is steep where calibrated knots lie close together.
LOAD_TOLERANCES = {torch.float32: 5e-2, torch.float16: 2e-1}
PROMPT_TOKENS = 48
DECODE_STEPS = 4


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, the tolerance at which it just passes, and the one it must pass at."""

    name: str
    required: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the two agree; a NaN on either side does not."""
        return self.required <= self.tolerance


def load_constants(path: Path, sparsity: Sparsity) -> LoadMap:
    """Give a patched model the calibrated values of an exported graph; returns its load map."""
    content = path.read_bytes()
    values = GraphConstants(content, path.with_name(data_name(path)))

    def constant(name: str) -> Tensor:
        return torch.from_numpy(values.read(name).copy())

    layers = range(len(sparsity.thresholds))
    sparsity.thresholds[:] = [constant(graph.threshold(n)) for n in layers]
    sparsity.compensation[:] = [constant(name) for name in map(graph.compensation, layers) if name in values]
    probed = [n for n in layers if graph.anticipation(n)[0] in values]
    sparsity.anticipation = Anticipation(probed[0], *map(constant, graph.anticipation(probed[0]))) if probed else None
    node = next(node for node in nodes_of(content, DOMAIN) if node.op == LOAD_SIGNAL.name)
    weight = dict(node.floats)[LOAD_SIGNAL.attributes[0].name]
    return LoadMap(
        surprisal_knots=constant(graph.SURPRISAL_KNOTS),
        entropy_knots=constant(graph.ENTROPY_KNOTS),
        scale_knots=constant(graph.SCALE_KNOTS),
        reanalysis_load=constant(graph.REANALYSIS_LOAD),
        surprisal_weight=weight,
        token_scale=constant(graph.TOKEN_SCALE) if graph.TOKEN_SCALE in values else None,
    )


def _relative(ours: Any, reference: Tensor) -> float:
    """Largest difference as a share of the range of the reference; infinite where either is not finite."""
    expected = reference.double().numpy().reshape(len(reference), -1)
    given = np.asarray(ours, np.float64).reshape(expected.shape)
    if not (np.isfinite(given).all() and np.isfinite(expected).all()):
        return float("inf")
    return float((np.abs(given - expected).max(axis=1) / np.ptp(expected, axis=1)).max())


@torch.no_grad()
def greedy_tokens(
    model: Any, sparsity: Sparsity, load_map: LoadMap, pools: PoolPolicy | None, prompt: Sequence[int], count: int
) -> list[int]:
    """What PyTorch generates by itself from the patched model: prefill dense, decode sparse, greedy.

    Args:
        model: A causal LM after `sparsify`.
        sparsity: Its state, with the calibrated values.
        load_map: Constants of the load signal.
        pools: How its pools are chosen; None where every neuron may be used.
        prompt: Token ids.
        count: How many tokens to generate.
    """
    decoder = Decoder(model, sparsity, load_map.surprisal_weight)
    values = constants(sparsity, load_map)
    ids = torch.tensor([list(prompt)])
    step = first_step(model, ids, torch.ones_like(ids))
    logits, present, score, load, *_ = decoder(**step, **values)
    chosen = choose_pools(pools, [s.numpy() for s in score], np.array([len(prompt)])) if pools else None
    tokens: list[int] = []
    while True:
        tokens.append(int(logits[0, -1].argmax()))
        if len(tokens) == count:
            return tokens
        step = next_step(step, torch.tensor([tokens[-1:]]), logits, present)
        due = np.zeros(1, np.bool_)
        if chosen is not None:
            due = overdue(chosen, load_map.reanalysis_load.item())
            step["pools"] = [torch.from_numpy(mask | due[:, None]) for mask in chosen.masks]
        logits, present, score, load, *_ = decoder(**step, **values)
        if pools and chosen:
            opened = due | (load >= load_map.reanalysis_load).numpy()
            update_pools(pools, chosen, [s.numpy() for s in score], opened, np.ones(1, np.bool_))


def _run_onnx(model: OnnxRuntimeModel, step: dict[str, Any], fetch: Sequence[str]) -> dict[str, Any]:
    """Run the exported graph on the inputs of Decoder.forward; of logits, only the last position is kept."""
    names = [graph.INPUT_IDS, graph.ATTENTION_MASK, graph.POSITION_IDS, graph.PAST_LOGITS]
    inputs = {name: step[name].numpy() for name in names}
    inputs |= {graph.pool(n): pool.numpy() for n, pool in enumerate(step["pools"])}
    cache = model.load_cache([tensor.contiguous().numpy() for keys_values in step["past"] for tensor in keys_values])
    outputs, _ = model.step(inputs, cache, fetch)
    return outputs | {graph.LOGITS: outputs[graph.LOGITS][:, -1:]}


def scale_of_load(load: Any, scale_knots: Tensor) -> Tensor:
    """The scale f32[B] that follows from a load, so that what moved the load is not blamed on the decisions."""
    at = np.linspace(0, 1, len(scale_knots))
    return torch.from_numpy(np.interp(load, at, scale_knots.double().numpy())).float()


@contextmanager
def _layer_inputs(layers: Sequence[SparseLayer]) -> Iterator[list[Tensor]]:
    """Within the context each pass leaves the layers' inputs [B, S, D] in the list, in order."""
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _layer, args: inputs.append(args[0])) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _decision_gap(
    layer: SparseLayer, x: Tensor, threshold: Tensor, scale: Tensor, pool: Tensor, kept: Tensor
) -> tuple[int, float]:
    """How many neurons PyTorch decides otherwise than `kept` [B, F], and how far from the threshold the farthest is.

    The distance is a share of the token's largest activation: what rounding moves an activation by is.
    """
    weights = [layer.get_parameter(name) for name in layer.weight_names]
    x = x.reshape(len(kept), 1, -1)
    score = torch_op(layer.op)(x, *weights, threshold, scale, pool, layer.activation)[2]
    magnitude = activations(layer, x)[0].float().abs().squeeze(1)
    distance = (magnitude - scale * threshold).abs() / magnitude.amax(-1, keepdim=True)
    otherwise = (score > 0) != kept
    return int(otherwise.sum()), float(distance[otherwise].max()) if otherwise.any() else 0.0


def _worse(a: float, b: float) -> float:
    """The larger of two differences; unlike `max`, NaN where either is."""
    return float(np.maximum(a, b))


@torch.no_grad()
def _verify_batch(
    exported: OnnxRuntimeModel, decoder: Decoder, values: dict[str, Any], rows: Tensor, batch: int, label: str
) -> list[Check]:
    """Prefill and decode of a batch of prompts, the second and later ones padded on the left.

    Rounding may move an activation across its threshold, and then the two sides rightly differ. So in decode PyTorch
    computes with the neurons that ONNX Runtime kept, which must give the same logits, and the decisions are
    compared by themselves: the sides may only disagree about a neuron that is near its threshold.
    """
    model, layers, sparsity = decoder.model, sparse_layers(decoder.model), decoder.sparsity
    tolerance = TOLERANCES[model.dtype]
    mask = torch.ones(batch, PROMPT_TOKENS, dtype=torch.int64)
    mask[1:, : PROMPT_TOKENS // 3] = 0
    step = first_step(model, rows[:batch, :PROMPT_TOKENS], mask)
    logits, present, *_ = decoder(**step, **values)
    outputs = _run_onnx(exported, step, [graph.LOGITS])
    checks = [Check(f"prefill, {label}", _relative(outputs[graph.LOGITS], logits), tolerance)]

    worst_logits, worst_gap, otherwise = 0.0, 0.0, 0
    worst_signal = {graph.LOAD: 0.0, graph.SURPRISAL: 0.0, graph.ENTROPY: 0.0}
    for at in range(PROMPT_TOKENS, PROMPT_TOKENS + DECODE_STEPS):
        step = next_step(step, rows[:batch, at : at + 1], logits, present)
        scores = [graph.score(n) for n in range(len(layers))]
        outputs = _run_onnx(exported, step, [graph.LOGITS, *worst_signal, *scores])
        knots = [values[name] for name in (graph.SURPRISAL_KNOTS, graph.ENTROPY_KNOTS, graph.SCALE_KNOTS)]
        signals = torch_op(LOAD_SIGNAL)(
            step["past_logits"], step["input_ids"][:, -1], *knots, decoder.surprisal_weight
        )[1:]
        for name, signal in zip(worst_signal, signals, strict=True):
            difference = np.abs(outputs[name] - signal.numpy()) / np.maximum(1, np.abs(signal.numpy()))
            worst_signal[name] = _worse(worst_signal[name], float(difference.max()))
        scale = scale_of_load(outputs[graph.LOAD], values[graph.SCALE_KNOTS])[:, None]
        for table in values[graph.TOKEN_SCALE]:
            scale = table[step["input_ids"]]
        load = torch.from_numpy(outputs[graph.LOAD]).float()[:, None]
        kept = [torch.from_numpy(outputs[name]) > 0 for name in scores]
        with _layer_inputs(layers) as inputs:
            logits, present = decoder.run(
                **{name: step[name] for name in ("input_ids", "attention_mask", "position_ids", "past")},
                scale=torch.zeros(batch, 1),
                pools=kept,
                sparse=torch.ones(batch, 1, dtype=torch.bool),
            )
        worst_logits = _worse(worst_logits, _relative(outputs[graph.LOGITS], logits))
        for n, layer in enumerate(layers):
            if sparsity.anticipation is not None and sparsity.anticipation.layer == n:
                scale = sparsity.anticipation.refined(scale, inputs[n].reshape(batch, 1, -1), load)
            count, gap = _decision_gap(layer, inputs[n], values["thresholds"][n], scale, step["pools"][n], kept[n])
            otherwise, worst_gap = otherwise + count, _worse(worst_gap, gap)
    neurons = DECODE_STEPS * batch * sum(layer.neurons for layer in layers)
    return [
        *checks,
        Check(f"decode, {label}", worst_logits, tolerance),
        *(
            Check(
                f"decode, {label}: {name}",
                worst,
                (LOAD_TOLERANCES if name == graph.LOAD else TOLERANCES)[model.dtype],
            )
            for name, worst in worst_signal.items()
        ),
        Check(f"decode, {label}: {otherwise} of {neurons} neurons decided otherwise", worst_gap, tolerance),
    ]


def verification_rows(texts: list[str], tokenizer: Any, vocabulary: int) -> Tensor:
    """Two rows of real text to verify on; see `verify`."""
    length = PROMPT_TOKENS + DECODE_STEPS
    return token_rows(texts, tokenizer, vocabulary=vocabulary, tokens=2 * length, length=length)


def verify(
    path: Path, model: Any, sparsity: Sparsity, load_map: LoadMap, rows: Tensor, in_place: Path | None = None
) -> list[Check]:
    """Compare an exported graph with the model it was traced from, in prefill and decode, alone and in a batch.

    Args:
        path: The portable ONNX file.
        model: The patched causal LM, in the dtype of the file.
        sparsity: Its state, with the thresholds of the file.
        load_map: The load map of the file.
        rows: i64[2, N] tokens of real text, N >= PROMPT_TOKENS + DECODE_STEPS.
        in_place: The ONNX file of the same model with an in-place cache, if it is to be compared too.

    Returns:
        What was compared, how close it was, and how close it had to be.
    """
    decoder = Decoder(model, sparsity, load_map.surprisal_weight)
    values = constants(sparsity, load_map)
    exported = OnnxRuntimeModel(path, Execution(kernels="bodies", exact=True))
    checks = [
        check for batch in (1, 2) for check in _verify_batch(exported, decoder, values, rows, batch, f"batch {batch}")
    ]
    del exported  # one graph at a time holds its weights
    # And as a session runs it, on the native kernels where they are installed.
    if in_place is None:
        exported = OnnxRuntimeModel(path, Execution(exact=True))
        return checks + _verify_batch(exported, decoder, values, rows, 2, f"batch 2, {exported.kernels}")
    exported = InPlaceModel(in_place, model.config.max_position_embeddings, Execution(exact=True))
    return checks + _verify_batch(exported, decoder, values, rows, 1, f"in-place cache, {exported.kernels}")


def check_lines(checks: Sequence[Check]) -> list[str]:
    """A table of checks, one line each."""
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
