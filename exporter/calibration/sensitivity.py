"""Sensitivity of the model's output to losing a neuron: a second-order estimate, from gradients on calibration text."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clada.exporter.model.patch import SparseLayer, sparse_layers

_DRAWS = 2


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivities of one layer's neurons, means over tokens.

    Args:
        unit: f64[F], E[(g . w_i)^2]: w_i what the neuron writes, g the gradient of the log-likelihood of a token drawn
            from the model's own prediction with respect to the layer's output. That is the diagonal of the Fisher
            information; half of it is the KL divergence that a unit of h_i costs, to second order.
        activation: f64[F], E[up_i^2 (g . w_i)^2]: the same for a unit of a_i.
    """

    unit: Tensor
    activation: Tensor


@contextmanager
def _recorded(layers: list[SparseLayer]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Make layers compute densely and differentiably, within the context, and record their inputs and outputs."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def forward(layer: SparseLayer, x: Tensor) -> Tensor:
        y = layer.dense(x)
        # The first output is where differentiation ends: no gradient below it is needed.
        y = y if outputs else y.detach().requires_grad_()
        y.retain_grad()
        inputs.append(x.detach())
        outputs.append(y)
        return y

    for layer in layers:
        layer.forward = functools.partial(forward, layer)  # type: ignore[method-assign]
    try:
        yield inputs, outputs
    finally:
        for layer in layers:
            del layer.forward


def sensitivities(model: Any, batches: list[Tensor], prompt_tokens: int, seed: int = 0) -> list[Sensitivity]:
    """Measure the sensitivities of every layer.

    Args:
        model: A causal LM after `sparsify`, in float32.
        batches: i64[B, S] tokens each.
        prompt_tokens: Tokens at the start of each row that are not counted.
        seed: Seed of the tokens drawn from the model's predictions.
    """
    layers = sparse_layers(model)
    totals = [torch.zeros(2, layer.neurons, dtype=torch.float64) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    count = 0
    with torch.enable_grad():
        for ids in batches * _DRAWS:
            with _recorded(layers) as (inputs, outputs):
                log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
            drawn = torch.multinomial(log_p.detach().exp().flatten(0, 1), 1, generator=generator)
            log_p.flatten(0, 1).gather(1, drawn).sum().backward()
            for layer, x, y, total in zip(layers, inputs, outputs, totals, strict=True):
                assert y.grad is not None
                width = x.shape[-1]
                counted = [t.reshape(*ids.shape, width)[:, prompt_tokens:].reshape(-1, width) for t in (x, y.grad)]
                with torch.no_grad():
                    effect = counted[1] @ layer.outward.t()
                    up = layer.activations(counted[0])[1]
                    total += torch.stack([effect.square().sum(0), (effect * up).square().sum(0)])
            count += ids.shape[0] * (ids.shape[1] - prompt_tokens)
    for parameter in required:
        parameter.requires_grad_(True)
    return [Sensitivity(*(total / count)) for total in totals]
