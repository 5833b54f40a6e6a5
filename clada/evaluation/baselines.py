"""Published sparsity rules that the ops do not support, in PyTorch alone, as baselines: tt, teal and wina.

All three are of the feed-forward networks only, and each has one knob, the same for every layer:

tt     Zhang et al. 2024: neuron i is kept where the norm of what it writes, |h_i| * ||w_out_i||, is at least eps. A
       layer's eps is where the mean over tokens of CETT = ||sum of what is dropped|| / ||output|| meets a target. It
       needs every neuron before it can drop one, so it is an oracle: what it reads is what a perfect predictor of the
       kept neurons would.
teal   Liu et al. 2024: input i of a matrix is kept where |x_i| is at least a quantile over calibration text. That
       quantile is the same for all matrices, without TEAL's search for one of each layer.
wina   Chen et al. 2025: as teal, by |x_i| * ||column i||; with a threshold in the place of the k largest, so that a
       token may keep more than another, and without making columns orthogonal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.errors import CladaError, UnreachableError
from clada.evaluation.subject import Floats
from clada.evaluation.torch_subject import InputThresholds, TorchSubject, read_shares, skipping
from clada.exporter.calibration.calibrate import prompt_tokens
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.plan import threshold
from clada.exporter.model.patch import SparseLayer

# Tokens that a calibration decodes at most: for one knob few do.
_TOKENS = 2048
_KNOTS = 1025
_STEPS = 24
# How near to what is wanted a search ends, as a share of it.
_CLOSE = 0.002


def _bisect(figure: Callable[[float], float], wanted: float, tolerance: float) -> tuple[float, float]:
    """Bisect for the setting in [0, 1] whose figure is nearest to the goal; the figure grows with the setting."""
    low, high = 0.0, 1.0
    best = (0.0, figure(0.0))
    if best[1] >= wanted:
        return best
    for _ in range(_STEPS):
        middle = (low + high) / 2
        value = figure(middle)
        if abs(value - wanted) < abs(best[1] - wanted):
            best = (middle, value)
        if abs(value - wanted) <= tolerance:
            break
        low, high = (middle, high) if value < wanted else (low, middle)
    return best


def _quantiles(weighed: Tensor) -> Floats:
    """Levels f64[K] below which each share of the values lies; none lies below the first, 0."""
    levels = np.quantile(weighed.numpy(), np.linspace(0, 1, _KNOTS))
    levels[0] = 0
    return levels


def _level(quantiles: Floats, share: float) -> float:
    return float(np.interp(share, np.linspace(0, 1, _KNOTS), quantiles))


def cett(layer: SparseLayer, x: Tensor, thresholds: Tensor) -> float:
    """Mean over tokens of CETT: the norm of the dropped sum as a share of the norm of the whole output.

    Args:
        layer: The layer.
        x: f32[T, D], its inputs.
        thresholds: f32[F], the |h_i| below which a neuron is dropped.
    """
    h, outward = layer.hidden(x), layer.outward
    return _cett(h, h @ outward, outward, thresholds)


def _cett(h: Tensor, whole: Tensor, outward: Tensor, thresholds: Tensor) -> float:
    dropped = torch.where(h.abs() < thresholds, h, 0) @ outward
    return float((dropped.norm(dim=-1) / whole.norm(dim=-1).clamp_min(1e-30)).mean(dtype=torch.float64))


def _tt(layers: Sequence[SparseLayer], inputs: Sequence[Tensor]) -> Callable[[float], InputThresholds]:
    norms = [layer.outward.norm(dim=1) for layer in layers]
    quantiles = [_quantiles(layer.hidden(x).abs() * norm) for layer, x, norm in zip(layers, inputs, norms, strict=True)]

    def of_layer(index: int, target: float) -> Tensor:
        h, outward = layers[index].hidden(inputs[index]), layers[index].outward
        whole = h @ outward

        def at(share: float) -> Tensor:
            return threshold(_level(quantiles[index], share), norms[index])

        found, _ = _bisect(lambda share: _cett(h, whole, outward, at(share)), target, _CLOSE * target)
        return at(found)

    def thresholds(target: float) -> InputThresholds:
        return [{layer.matrices[-1]: of_layer(index, target)} for index, layer in enumerate(layers)]

    return thresholds


def _by_input(
    layers: Sequence[SparseLayer], inputs: Sequence[Tensor], with_norms: bool
) -> Callable[[float], InputThresholds]:
    importance: list[dict[str, Tensor]] = []
    quantiles: list[dict[str, Floats]] = []
    for layer, x in zip(layers, inputs, strict=True):
        *inward, outward = layer.matrices
        read = {**dict.fromkeys(inward, x), outward: layer.hidden(x)}
        # Each matrix is [F, D]: its inputs are columns in the gate and up projections, rows in the down projection.
        norms = {name: layer.get_parameter(name).norm(dim=1 if name == outward else 0) for name in read}
        importance.append({name: n if with_norms else torch.ones_like(n) for name, n in norms.items()})
        quantiles.append({name: _quantiles(value.abs() * importance[-1][name]) for name, value in read.items()})

    def thresholds(share: float) -> InputThresholds:
        return [
            {name: threshold(_level(levels[name], share), weights[name]) for name in levels}
            for levels, weights in zip(quantiles, importance, strict=True)
        ]

    return thresholds


@dataclass(frozen=True)
class Rule:
    """Definition of a baseline.

    Args:
        knob: Name of its one setting, in [0, 1]: 0 is dense, and the higher it is the less is read.
        fit: Function of the layers and their inputs f32[T, D] on calibration text; gives the thresholds for a setting.
        oracle: Whether it needs the neurons that it drops.
    """

    knob: str
    fit: Callable[[Sequence[SparseLayer], Sequence[Tensor]], Callable[[float], InputThresholds]]
    oracle: bool = False


RULES: dict[str, Rule] = {
    "tt": Rule("cett", _tt, oracle=True),
    "teal": Rule("input_sparsity", lambda layers, inputs: _by_input(layers, inputs, with_norms=False)),
    "wina": Rule("input_sparsity", lambda layers, inputs: _by_input(layers, inputs, with_norms=True)),
}


def calibration_texts(model: Any, rows: Tensor) -> Texts:
    """Texts of the first rows i64[N, S], as many as calibrate a baseline; the first quarter of a row is the prompt."""
    prompt = prompt_tokens(rows.shape[1])
    return Texts(model, rows[: max(1, _TOKENS // (rows.shape[1] - prompt))], prompt)


@torch.no_grad()
def fit(name: str, texts: Texts) -> Callable[[float], InputThresholds]:
    """Fit the thresholds of a rule, by its knob, on the layers' inputs in dense passes."""
    parts: list[list[Tensor]] = [[] for _ in texts.layers]
    texts.dense_inputs(lambda index, x: parts[index].append(x.flatten(0, 1)))
    return RULES[name].fit(texts.layers, [torch.cat(part) for part in parts])


@torch.no_grad()
def mean_read(texts: Texts, thresholds: InputThresholds) -> float:
    """Mean share of the feed-forward weights' bytes read in decoding the texts, every layer sparse at once."""
    total = 0.0
    for ids in texts.batches:
        sparse = (torch.arange(ids.shape[1]) >= texts.prompt_tokens).expand(ids.shape)
        with skipping(texts.model, thresholds, sparse) as counts:
            texts.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        total += float(read_shares(texts.layers, thresholds, counts)[sparse].sum(dtype=torch.float64))
    return total / texts.decoded_tokens


def baseline(name: str, model: Any, rows: Tensor, cost: float) -> TorchSubject:
    """Create a baseline that reads a given share of the feed-forward weights' bytes.

    Args:
        name: One of RULES.
        model: A causal LM after `sparsify`, in float32; it stays dense for others.
        rows: i64[N, S] calibration tokens.
        cost: The share of bytes a token may read, in (0, 1); a ReLU model that needs less stays dense and reads less.

    Raises:
        CladaError: There is no such cost; UnreachableError: none of the rule's settings meets it.

    Example:
        >>> sparsify(model)
        >>> subject = baseline("teal", model, rows, 0.5)
        >>> evaluate(subject, suite).metrics["kl"].value
    """
    if not 0 < cost < 1:
        raise CladaError(f"the FFN cost is {cost}; it must lie between 0 and 1, exclusive")
    rule, texts = RULES[name], calibration_texts(model, rows)
    thresholds = fit(name, texts)
    knob, skipped = _bisect(lambda value: 1 - mean_read(texts, thresholds(value)), 1 - cost, _CLOSE * cost)
    if 1 - skipped > cost * (1 + 5 * _CLOSE):
        raise UnreachableError(f"the FFN cost {cost} cannot be reached by {name}: the nearest is {1 - skipped:.4f}")
    return TorchSubject(
        model,
        thresholds(knob),
        name=f"{name} (PyTorch only)",
        policy={"name": name, "ffn_cost": cost, "pytorch_only": True, "oracle": rule.oracle, "attention": "dense"},
        calibration={
            "tokens": texts.decoded_tokens,
            "prompt_tokens": texts.prompt_tokens,
            "ffn_cost": 1 - skipped,
            rule.knob: knob,
        },
    )
