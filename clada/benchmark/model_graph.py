"""Graph of a whole model with random weights, and thresholds that keep about a share of its neurons."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from clada.benchmark.shapes import MAXIMUM_CONTEXT, Shape, random_tokens
from clada.exporter.graph.trace import trace
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.ops import graph_names
from clada.ops.record import Array

_CALIBRATION_TOKENS = 64


def random_model(shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """Create a causal LM, the same at each call."""
    config = AutoConfig.for_model(
        shape.family,
        hidden_size=shape.hidden,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=MAXIMUM_CONTEXT,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def load_that_moves_nothing() -> LoadMap:
    """Constants of the load signal with which load does not scale the thresholds: that would change the share."""
    knots = torch.tensor([0.0, 1.0])
    return LoadMap(knots, 2 * knots, torch.ones(3), torch.tensor(2.0), surprisal_weight=0.5)


@torch.inference_mode()
def _thresholds(model: Any, shape: Shape, fractions: Sequence[float]) -> dict[float, list[Array]]:
    """For each share of neurons, f32[F] for each layer: a quantile of the activations on random tokens."""
    layers, quantiles = sparse_layers(model), list[Array]()

    def watch(index: int, x: Tensor) -> None:
        a, _ = layers[index].activations(x)
        quantiles.append(np.quantile(a.abs().numpy(), [1 - fraction for fraction in fractions]).astype(np.float32))

    with shown_inputs(layers, watch):
        model(input_ids=torch.from_numpy(random_tokens(shape, _CALIBRATION_TOKENS, seed=1)), logits_to_keep=1)
    return {
        fraction: [np.full(shape.neurons, levels[index]) for levels in quantiles]
        for index, fraction in enumerate(fractions)
    }


def traced_model(
    shape: Shape, fractions: Sequence[float], dtype: torch.dtype = torch.float32
) -> tuple[onnx_ir.Model, dict[float, list[Array]]]:
    """Trace the graph in a type; returns it with the thresholds of each layer for each share of neurons.

    It keeps its cache in place, as the runtime has it for one text. The thresholds are inputs, so that one session
    serves all shares.
    """
    model = random_model(shape)
    sparsify(model)
    thresholds = _thresholds(model, shape, fractions)  # in float32, which a CPU is quick in
    zeros = tuple(torch.zeros(shape.neurons) for _ in range(shape.layers))
    calibrated = Calibrated(zeros, load_map=load_that_moves_nothing())
    traced = trace(model.to(dtype), calibrated, in_place_cache=True)
    for layer in range(shape.layers):
        value = traced.graph.initializers.pop(graph_names.threshold(layer))
        value.const_value = None
        traced.graph.inputs.append(value)
    return traced, thresholds
