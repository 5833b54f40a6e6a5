"""Calibration: thresholds for a sparsity or an error budget, measured on the model's own output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clada.exporter.allocation import ALLOCATIONS, GRID, Floats
from clada.exporter.decoder import LoadMap
from clada.exporter.neurons import IMPORTANCES, NeuronStatistics, neuron_statistics, relative_error
from clada.exporter.partial_forward import input_of, logits_from
from clada.exporter.patch import Sparsity, decoder_layers, sparse_layers
from clada.plugins.errors import CladaError

# Tokens at the start of each row that stay dense, as a prompt does: attention sinks break otherwise.
DENSE_PREFIX = 32
_KNOTS = 33
_SCALE_KNOTS = (1.2, 1.1, 1.0, 0.9, 0.8)
_SURPRISAL_WEIGHT = 0.5
# The share of tokens whose load opens the pool.
_REANALYSIS_SHARE = 0.01
_LOGITS_IN_FLIGHT = 2**25  # elements; bounds the rows in a batch for a large vocabulary


@dataclass(frozen=True)
class CalibrationConfig:
    """What to calibrate for.

    Args:
        target_sparsity: Mean sparsity of the layers, in (0, 1); ignored with an error budget.
        error_budget: Highest KL divergence from the dense model, nats a token; the sparsity is then the highest
            that keeps to it.
        importance: One of IMPORTANCES.
        allocation: One of ALLOCATIONS.
    """

    target_sparsity: float = 0.5
    error_budget: float | None = None
    importance: str = "contribution"
    allocation: str = "kl"

    def __post_init__(self) -> None:
        if not 0 < self.target_sparsity < 1:
            raise CladaError(f"the target sparsity is {self.target_sparsity}; it must lie between 0 and 1, exclusive")
        if self.target_sparsity > GRID[-1] and self.error_budget is None:
            raise CladaError(f"the target sparsity is {self.target_sparsity}; no layer is given more than {GRID[-1]}")
        if self.error_budget is not None and not 0 < self.error_budget < float("inf"):
            raise CladaError(f"the error budget is {self.error_budget}; it must be a positive number of nats")
        if self.importance not in IMPORTANCES:
            raise CladaError(f"importance '{self.importance}' is not one of {', '.join(IMPORTANCES)}")
        if self.allocation not in ALLOCATIONS:
            raise CladaError(f"allocation '{self.allocation}' is not one of {', '.join(ALLOCATIONS)}")


@dataclass(frozen=True)
class LayerCalibration:
    """Of one layer: the sparsity it was given, that it showed, and what sparsity costs when it alone is sparse.

    Args:
        sparsity: Share of neurons to drop.
        realised: Share of neurons dropped on the calibration tokens, all layers sparse.
        level: tau, so that threshold_i = tau / c_i.
        median_threshold: Of the layer's neurons.
        cost: Measured at each sparsity of GRID, as the allocation needs it; empty if it needs none.
    """

    sparsity: float
    realised: float
    level: float
    median_threshold: float
    cost: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """The outcome.

    Args:
        thresholds: f32[F] for each layer.
        load_map: Constants of the load signal.
        layers: For each layer, how its sparsity came about.
        divergence: KL divergence of the output from the dense model's with all layers sparse, nats a token.
        agreement: Share of tokens whose most likely successor is the dense model's.
        tokens: Tokens that were measured, the dense prefixes not counted.
    """

    thresholds: list[Tensor]
    load_map: LoadMap
    layers: list[LayerCalibration]
    divergence: float
    agreement: float
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """Of a sparse output with the dense one: KL divergence in nats a token, share of likeliest tokens unchanged."""

    divergence: float
    agreement: float


def _scale_after_prefix(ids: Tensor) -> Tensor:
    """f32[B, S]: 0 for the dense prefix, 1 after it."""
    scale = torch.ones(ids.shape)
    scale[:, :DENSE_PREFIX] = 0
    return scale


class Reference:
    """The dense model's output on rows of tokens, kept as the inputs of its output matrix.

    Args:
        model: A causal LM after `sparsify`, its thresholds all zero.
        rows: i64[N, S] tokens, S > DENSE_PREFIX.
    """

    def __init__(self, model: Any, rows: Tensor) -> None:
        rows_in_batch = max(1, min(16, _LOGITS_IN_FLIGHT // (model.config.vocab_size * rows.shape[1])))
        self.model, self.batches = model, list(rows.split(rows_in_batch))
        self.head = model.get_output_embeddings()
        self.before_head = [input_of(model, self.head, ids) for ids in self.batches]

    @torch.no_grad()
    def log_probabilities(self, batch: int) -> Tensor:
        """f32[B, S, V]."""
        return torch.log_softmax(self.head(self.before_head[batch]).float(), dim=-1)

    @torch.no_grad()
    def compare(self, sparsity: Sparsity, layer: int = 0, hidden: list[Tensor] | None = None) -> Comparison:
        """Mean KL divergence and agreement of a pass from a layer on, with the thresholds as set."""
        total, agreed, count = 0.0, 0, 0
        for index, ids in enumerate(self.batches):
            with sparsity.steered(scale=_scale_after_prefix(ids)):
                logits = logits_from(self.model, ids, layer, None if hidden is None else hidden[index])
            sparse = torch.log_softmax(logits[:, DENSE_PREFIX:].float(), dim=-1)
            dense = self.log_probabilities(index)[:, DENSE_PREFIX:]
            total += float((dense.exp() * (dense - sparse)).sum(dtype=torch.float64))
            agreed += int((dense.argmax(-1) == sparse.argmax(-1)).sum())
            count += sparse.shape[0] * sparse.shape[1]
        return Comparison(total / count, agreed / count)


def _load_map(reference: Reference) -> LoadMap:
    """Quantile knots of surprisal and entropy, and the load that only few tokens reach."""
    surprisal, entropy = [], []
    for index, ids in enumerate(reference.batches):
        log_p = reference.log_probabilities(index)[:, DENSE_PREFIX - 1 : -1]
        surprisal.append(-log_p.gather(-1, ids[:, DENSE_PREFIX:, None]).flatten())
        entropy.append(torch.special.entr(log_p.exp()).sum(-1).flatten())
    at = np.linspace(0, 1, _KNOTS)
    values = [torch.cat(parts).double().numpy() for parts in (surprisal, entropy)]
    knots = [np.quantile(value, at) for value in values]
    ranks = [np.interp(value, knot, at) for value, knot in zip(values, knots, strict=True)]
    load = _SURPRISAL_WEIGHT * ranks[0] + (1 - _SURPRISAL_WEIGHT) * ranks[1]
    return LoadMap(
        surprisal_knots=torch.from_numpy(knots[0]).float(),
        entropy_knots=torch.from_numpy(knots[1]).float(),
        scale_knots=torch.tensor(_SCALE_KNOTS),
        reanalysis_load=torch.tensor(np.quantile(load, 1 - _REANALYSIS_SHARE), dtype=torch.float32),
        surprisal_weight=_SURPRISAL_WEIGHT,
    )


def _measure_layers(
    model: Any, sparsity: Sparsity, reference: Reference, config: CalibrationConfig, step: Callable[[str], None]
) -> tuple[list[NeuronStatistics], Floats]:
    """Statistics of each layer and its cost [L, len(GRID)] at each sparsity of GRID, one layer at a time."""
    cost_kind = ALLOCATIONS[config.allocation].cost
    decoders, sparse = decoder_layers(model), sparse_layers(model)
    hidden = [input_of(model, decoders[0], ids) for ids in reference.batches]
    statistics: list[NeuronStatistics] = []
    costs = np.zeros((len(sparse), len(GRID)))
    for index, layer in enumerate(sparse):
        width = hidden[0].shape[-1]
        inputs = [
            input_of(model, layer, ids, index, h).reshape(*ids.shape, width)[:, DENSE_PREFIX:].reshape(-1, width)
            for ids, h in zip(reference.batches, hidden, strict=True)
        ]
        statistics.append(neuron_statistics(layer, inputs, config.importance))
        step(f"layer {index}")
        if cost_kind is not None:
            dense = sparsity.thresholds[index]
            for column, share in enumerate(GRID):
                threshold = statistics[-1].threshold(share)
                if cost_kind == "relative_error":
                    costs[index, column] = relative_error(layer, inputs, threshold)
                else:
                    sparsity.thresholds[index] = threshold
                    costs[index, column] = reference.compare(sparsity, index, hidden).divergence
                step(f"layer {index}")
            sparsity.thresholds[index] = dense
        if index + 1 < len(sparse):
            hidden = [
                input_of(model, decoders[index + 1], ids, index, h)
                for ids, h in zip(reference.batches, hidden, strict=True)
            ]
    return statistics, costs


def _realised(model: Any, sparsity: Sparsity, batches: list[Tensor]) -> list[float]:
    """Share of neurons dropped in each layer, all layers sparse at scale 1."""
    dropped = np.zeros(len(sparsity.thresholds))
    count = 0
    for ids in batches:
        with sparsity.steered(scale=_scale_after_prefix(ids)):
            input_of(model, model.get_output_embeddings(), ids)
        kept = torch.stack([active[:, DENSE_PREFIX:] for active in sparsity.active]).double()
        neurons = torch.tensor([layer.neurons for layer in sparse_layers(model)])
        dropped += (1 - kept / neurons[:, None, None]).sum((1, 2)).numpy()
        count += kept.shape[1] * kept.shape[2]
    return [float(value) for value in dropped / count]


def calibrate(model: Any, sparsity: Sparsity, rows: Tensor, config: CalibrationConfig) -> Calibration:
    """Choose the thresholds of a patched model and set them.

    Args:
        model: A causal LM after `sparsify`, in float32.
        sparsity: Its state; its thresholds are replaced.
        rows: i64[N, S] calibration tokens, S > DENSE_PREFIX.
        config: What to calibrate for.

    Returns:
        The thresholds, the load signal's constants, and what was measured.
    """
    layers = len(sparsity.thresholds)
    sparsity.thresholds[:] = [torch.zeros_like(threshold) for threshold in sparsity.thresholds]
    points = len(GRID) if ALLOCATIONS[config.allocation].cost else 0
    with tqdm(total=2 + layers * (1 + points), desc="calibrating", leave=False, disable=None) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        reference = Reference(model, rows)
        load_map = _load_map(reference)
        step("dense")
        statistics, costs = _measure_layers(model, sparsity, reference, config, step)

        def apply(mean: float) -> tuple[Floats, Comparison]:
            shares = ALLOCATIONS[config.allocation].share(costs, mean)
            sparsity.thresholds[:] = [s.threshold(share) for s, share in zip(statistics, shares, strict=True)]
            return shares, reference.compare(sparsity)

        mean = config.target_sparsity
        if config.error_budget is not None:
            mean, high = 0.0, GRID[-1]
            while high - mean > 0.005:
                middle = (mean + high) / 2
                within = apply(middle)[1].divergence <= config.error_budget
                mean, high = (middle, high) if within else (mean, middle)
        shares, comparison = apply(mean)
        realised = _realised(model, sparsity, reference.batches)
        step("all layers")

    return Calibration(
        thresholds=list(sparsity.thresholds),
        load_map=load_map,
        layers=[
            LayerCalibration(
                sparsity=share,
                realised=real,
                level=neurons.level(share),
                median_threshold=float(threshold.median()),
                cost=tuple(cost) if points else (),
            )
            for share, real, neurons, threshold, cost in zip(
                shares.tolist(), realised, statistics, sparsity.thresholds, costs.tolist(), strict=True
            )
        ],
        divergence=comparison.divergence,
        agreement=comparison.agreement,
        tokens=rows.shape[0] * (rows.shape[1] - DENSE_PREFIX),
    )
