"""Benchmark of a whole model."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from clada.benchmark.contender import TORCH, Contender, checked_error, dense, ours
from clada.benchmark.model_graph import random_model, traced_model
from clada.benchmark.own_process import in_own_process
from clada.benchmark.precisions import OF_MODELS
from clada.benchmark.sessions import execution
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import MAXIMUM_CONTEXT, Shape, random_tokens
from clada.benchmark.variants import Graph, Variants, write_variants
from clada.ops import graph_names
from clada.ops.record import Array
from clada.runtime.models.ort_cpu import OnnxRuntimeModel
from clada.runtime.models.ort_cpu_in_place import InPlaceModel
from clada.runtime.sampling import SamplingConfig, sample

# Decoding goes through these in turn: what is active differs by token.
_TOKENS = 8
# What is often asked of a language model: top-p is what costs most.
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9)
_GREEDY = SamplingConfig()
_NOTHING_SEEN = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Model:
    """One model in every form that is compared.

    Args:
        shape: Its sizes.
        context: Tokens in the cache when it decodes.
        variants: Its graphs.
        thresholds: For each share of neurons, f32[F] for each layer.
        dense: The dense graphs, loaded, by the precision of their weights.
        ours: Our graphs, loaded, by the precision their neurons' weights are held in.
        torch_model: The model in torch, or None where it is too large to be here as well.
    """

    shape: Shape
    context: int
    variants: Variants
    thresholds: dict[float, list[Array]]
    dense: dict[str, OnnxRuntimeModel]
    ours: dict[str, OnnxRuntimeModel]
    torch_model: Any


def _written(
    shape: Shape, fractions: Sequence[float], precisions: Sequence[str], folder: Path
) -> tuple[Variants, dict[float, list[Array]]]:
    """Write the graphs of a model; the thresholds of each layer for each share of neurons."""
    traced, thresholds = traced_model(shape, fractions)
    return write_variants(traced, folder, precisions), thresholds


def _loaded(source: Graph, settings: BenchSettings, precision: str | None) -> OnnxRuntimeModel:
    return InPlaceModel(source.path, MAXIMUM_CONTEXT, execution(settings.threads, precision))


@contextmanager
def opened_model(shape: Shape, settings: BenchSettings) -> Iterator[Model]:
    """Make a model; its files are gone when the context ends."""
    torch.set_num_threads(settings.threads)
    precisions = [precision for precision in settings.weights if precision in OF_MODELS]
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        # The sessions need the memory that this takes.
        variants, thresholds = in_own_process(_written, shape, settings.active, precisions, Path(folder))
        without = {precision: _loaded(source, settings, None) for precision, source in variants.dense.items()}
        sparse = {precision: _loaded(variants.of(precision), settings, precision) for precision in precisions}
        torch_model = random_model(shape) if shape.torch_model and "float32" in precisions else None
        yield Model(shape, settings.context, variants, thresholds, without, sparse, torch_model)


class _Steps:
    """Inputs and cache of one contender, in ONNX Runtime.

    Args:
        model: The benchmark's model.
        runner: Runner of the graph.
        thresholds: f32[F] for each layer.
        tokens: Number of tokens read at once; 1 is decode, after the model's context.
        counts: Whether to fetch how many neurons were computed, as the runtime does.
        sampling: Settings for drawing the next token, which takes time too; None for no draw.
    """

    def __init__(
        self,
        model: Model,
        runner: OnnxRuntimeModel,
        thresholds: Sequence[Array],
        tokens: int,
        counts: bool,
        sampling: SamplingConfig | None = None,
    ) -> None:
        self._sampling, self._random = sampling, np.random.default_rng(0)
        self._runner, self._neurons = runner, model.shape.neurons
        self._fetch = [graph_names.LOGITS, graph_names.ACTIVE] if counts else [graph_names.LOGITS]
        fixed = {graph_names.PAST_LOGITS: np.zeros((1, model.shape.vocabulary), np.float32)}
        fixed |= {graph_names.pool(n): np.ones((1, model.shape.neurons), np.bool_) for n in range(model.shape.layers)}
        fixed |= {graph_names.threshold(n): threshold for n, threshold in enumerate(thresholds)}
        self._cache = runner.empty_cache(1)
        before = 0
        if tokens == 1:
            before = model.context
            prompt = fixed | _positions(random_tokens(model.shape, before, seed=2), 0)
            _, self._cache = runner.step(prompt, self._cache, self._fetch)
        ids = random_tokens(model.shape, tokens * _TOKENS, seed=3).reshape(_TOKENS, 1, tokens)
        self._inputs = itertools.cycle([fixed | _positions(one, before) for one in ids])

    def run(self) -> tuple[Array, float]:
        """Read the next tokens after the same past; returns the last one's logits and share of computed neurons."""
        outputs, _ = self._runner.step(next(self._inputs), self._cache, self._fetch)
        if self._sampling is not None:
            sample(outputs[graph_names.LOGITS][0, -1], _NOTHING_SEEN, self._sampling, self._random)
        active = outputs[graph_names.ACTIVE].mean() / self._neurons if graph_names.ACTIVE in outputs else 1.0
        return outputs[graph_names.LOGITS], float(active)


def _positions(ids: Array, before: int) -> dict[str, Array]:
    total = before + ids.shape[1]
    return {
        graph_names.INPUT_IDS: ids,
        graph_names.ATTENTION_MASK: np.ones((1, total), np.int64),
        graph_names.POSITION_IDS: np.arange(before, total)[None],
    }


class _TorchSteps:
    """Inputs and cache of the model in torch, with the cache of transformers."""

    def __init__(self, model: Model, tokens: int) -> None:
        self._model, self._before = model.torch_model, model.context if tokens == 1 else 0
        self._cache: Any = DynamicCache()
        if self._before:
            self._read(random_tokens(model.shape, self._before, seed=2))
        ids = random_tokens(model.shape, tokens * _TOKENS, seed=3).reshape(_TOKENS, 1, tokens)
        self._ids = itertools.cycle(ids)

    @torch.inference_mode()
    def _read(self, ids: Array) -> Array:
        result = self._model(
            input_ids=torch.from_numpy(ids), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return result.logits.numpy()

    def run(self) -> tuple[Array, float]:
        """See `_Steps.run`."""
        logits = self._read(next(self._ids))
        if self._before:
            self._cache.crop(-1)
        else:
            self._cache = DynamicCache()
        return logits, 1.0


def _active(steps: _Steps | _TorchSteps) -> float:
    return steps.run()[1]


def _contender(
    name: str,
    steps: _Steps | _TorchSteps,
    reference: Array | None,
    always_bytes: float,
    active_bytes: float = 0,
    target: float | None = None,
) -> Contender:
    """Contender that can run; `reference` holds the expected first logits, if it is dense."""
    logits, _ = steps.run()
    error = None if reference is None else checked_error(name, logits, reference)
    return Contender(name, partial(_active, steps), always_bytes, active_bytes, target, error)


def model_contenders(model: Model, tokens: int, fractions: tuple[float, ...]) -> list[Contender]:
    """All contenders for a number of tokens at once; ours with these shares of neurons beside dense.

    Raises:
        CladaError: One of them does not compute what it should.
    """
    shape = model.shape
    width = shape.hidden // shape.heads
    cache_bytes = 4 * 2 * shape.layers * shape.key_value_heads * width * (model.context if tokens == 1 else 0)
    dense_thresholds = [np.zeros(shape.neurons, np.float32)] * shape.layers
    reference, _ = _Steps(model, model.dense["float32"], dense_thresholds, tokens, counts=False).run()
    contenders = []
    for precision, runner in model.dense.items():
        steps = _Steps(model, runner, dense_thresholds, tokens, counts=False)
        bytes_read = model.variants.dense[precision].other_bytes + cache_bytes
        contenders.append(_contender(dense(precision), steps, reference, bytes_read))
    if model.torch_model is not None:
        bytes_read = model.variants.dense["float32"].other_bytes + cache_bytes
        contenders.append(_contender(TORCH, _TorchSteps(model, tokens), reference, bytes_read))
    elif "float32" in model.ours:
        contenders.append(Contender(TORCH, missing="the model is too large to be in memory once more"))
    for precision, runner in model.ours.items():
        neuron_bytes = model.variants.neuron_bytes(precision)
        always = model.variants.of(precision).other_bytes + cache_bytes + neuron_bytes / 3
        for fraction in (None, *fractions):
            thresholds = dense_thresholds if fraction is None else model.thresholds[fraction]
            steps = _Steps(model, runner, thresholds, tokens, counts=True, sampling=_GREEDY)
            expected = reference if fraction is None else None
            name = ours(fraction, precision)
            contenders.append(_contender(name, steps, expected, always, 2 * neuron_bytes / 3, fraction))
        if fractions:
            # The same as the last of them but for the draw; nothing else is read.
            steps = _Steps(model, runner, thresholds, tokens, counts=True, sampling=SAMPLING)
            name = ours(fraction, precision, sampled=True)
            contenders.append(_contender(name, steps, None, always, 2 * neuron_bytes / 3, fraction))
    return contenders
