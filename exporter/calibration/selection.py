"""Selection of neurons: thresholds and pools, for a goal."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clada.contract.manifest import Policy
from clada.contract.pool import PoolPolicy, choose_pools
from clada.exporter.calibration.decode_pass import Decoded, Texts
from clada.exporter.calibration.goal import Goal
from clada.exporter.calibration.plan import CostHistogram, Plan, level_of, plan, predicted_cost, threshold
from clada.exporter.calibration.sensitivity import sensitivities
from clada.exporter.model.steering import SiteSettings
from clada.ops.sparse_ffn import weight_matrices

_PRIOR_TOKENS = (0.0, 8.0, 32.0, 128.0, 512.0, float("inf"))
_FIRST_PRIOR_TOKENS = 64.0
# Tokens that a search decodes at each step.
_SEARCH_TOKENS = 4096
# Logarithms of the least and the highest price of a row, in nats.
_PRICES = (-32.0, 5.0)
# How far from the predicted price, in logarithm, the measured one is looked for.
_AROUND = 2.5


@dataclass
class Measured:
    """Statistics for the choices: of each layer, importance c_i, histogram of costs, mean score and weight."""

    importance: list[Tensor]
    histograms: list[CostHistogram]
    prior: list[Tensor]
    weight: list[Tensor]


def measure(texts: Texts, policy: Policy) -> Measured:
    """Measure the statistics of the neurons in dense passes."""
    layers = texts.layers
    if policy.thresholds == "activation":
        importance = [torch.ones(layer.neurons, dtype=torch.float64) for layer in layers]
        weight = [torch.ones(layer.neurons) for layer in layers]
    else:
        sensitivity = sensitivities(texts.model, texts.batches, texts.prompt_tokens)
        importance = [s.activation.sqrt() for s in sensitivity]
        weight = [(s.unit / s.unit.mean()).float() for s in sensitivity]
    histograms = [CostHistogram.empty(layer.neurons) for layer in layers]
    prior = [torch.zeros(layer.neurons, dtype=torch.float64) for layer in layers]

    def take(index: int, x: Tensor) -> None:
        a, up = layers[index].activations(x.flatten(0, 1))
        histograms[index].add((a.float() * importance[index].float()).square() / 2)
        energy = (a * up).double().square()
        prior[index] += (energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)).sum(0)

    texts.dense_inputs(take)
    return Measured(importance, histograms, [p / texts.decoded_tokens for p in prior], weight)


def pool_policy(measured: Measured, shares: list[float], kind: str, prior_tokens: float) -> PoolPolicy:
    """Create the policy for pools of the given shares; see Policy.pool for the kind."""
    sizes = [max(1, round(share * len(p))) for share, p in zip(shares, measured.prior, strict=True)]
    if kind == "prompt":  # the published rule: the prompt alone, each neuron for itself
        ones = [np.ones(len(p), np.float32) for p in measured.prior]
        return PoolPolicy(sizes, 0.0, [0 * one for one in ones], ones)
    prior_tokens = float("inf") if kind == "calibration" else prior_tokens
    return PoolPolicy(
        sizes, prior_tokens, [p.float().numpy() for p in measured.prior], [w.numpy() for w in measured.weight]
    )


def pools_of(policy: PoolPolicy | None, texts: Texts) -> list[Tensor] | None:
    """Pools bool[N, F] that the runtime would choose after each row's prompt."""
    if policy is None:
        return None
    lengths = np.full(len(texts.rows), texts.prompt_tokens)
    chosen = choose_pools(policy, [score.numpy() for score in texts.prompt_scores], lengths)
    return [torch.from_numpy(mask) for mask in chosen.masks]


def _fit_prior_tokens(texts: Texts, measured: Measured, planned: Plan, price: float) -> float:
    """Fit the prior's weight, for the pools that hold the largest gains above the price of reading a neuron."""
    gains = [torch.zeros(len(texts.rows), layer.neurons) for layer in texts.layers]
    seen = [0] * len(texts.layers)

    def take(index: int, x: Tensor) -> None:
        a, _ = texts.layers[index].activations(x)
        cost = (a.float() * measured.importance[index].float()).square() / 2
        gains[index][seen[index] : seen[index] + len(x)] = (cost - price).clamp_min(0).sum(1)
        seen[index] += len(x)

    texts.dense_inputs(take)

    def kept(prior_tokens: float) -> float:
        pools = pools_of(pool_policy(measured, planned.pool_shares, "blended", prior_tokens), texts)
        assert pools is not None
        return sum(float((gain * pool).sum(dtype=torch.float64)) for gain, pool in zip(gains, pools, strict=True))

    return max(_PRIOR_TOKENS, key=kept)


def _thresholds(measured: Measured, levels: list[float]) -> tuple[Tensor, ...]:
    return tuple(threshold(level, importance) for level, importance in zip(levels, measured.importance, strict=True))


def select(texts: Texts, policy: Policy, goal: Goal) -> tuple[tuple[Tensor, ...], PoolPolicy | None]:
    """Choose which neurons a token computes.

    Returns:
        Thresholds f32[F] of each layer, and how pools are chosen; None where every neuron may be used.

    Raises:
        CladaError: The policy cannot reach the goal.
    """
    zeros = tuple(torch.zeros(layer.neurons) for layer in texts.layers)
    if not policy.thresholds and not policy.pool:
        return zeros, None
    measured = measure(texts, policy)
    few = texts.first(_SEARCH_TOKENS)
    if policy.thresholds == "activation":

        def of_sparsity(sparsity: float) -> tuple[Tensor, ...]:
            return _thresholds(measured, [level_of(histogram, 1 - sparsity) for histogram in measured.histograms])

        found = goal.search(lambda sparsity: few.decode(SiteSettings(of_sparsity(sparsity))), 0.0, 0.999)
        return of_sparsity(found), None
    if not policy.thresholds:

        def of_share(share: float) -> PoolPolicy:
            return pool_policy(measured, [share] * len(texts.layers), policy.pool, _FIRST_PRIOR_TOKENS)

        def at_dropped(dropped: float) -> Decoded:
            return few.decode(SiteSettings(zeros), pools=pools_of(of_share(1 - dropped), few))

        return zeros, of_share(1 - goal.search(at_dropped, 0.0, 0.999))

    matrices = weight_matrices(texts.layers[0].op)

    def planned(price: float) -> Plan:
        return plan(
            measured.histograms, np.exp(price), matrices, with_pool=bool(policy.pool), allocation=policy.allocation
        )

    def at_price(price: float) -> Decoded:
        chosen = planned(price)
        pools = None
        if policy.pool:
            pools = pools_of(pool_policy(measured, chosen.pool_shares, policy.pool, _FIRST_PRIOR_TOKENS), few)
        return few.decode(SiteSettings(_thresholds(measured, chosen.levels)), pools=pools)

    low, high = _PRICES
    if goal.name == "ffn_cost":
        for _ in range(40):
            middle = (low + high) / 2
            above = predicted_cost(measured.histograms, np.exp(middle), matrices, bool(policy.pool)) > goal.value
            low, high = (middle, high) if above else (low, middle)
        low, high = low - _AROUND, high + _AROUND
    price = goal.search(at_price, low, high)
    chosen = planned(price)
    thresholds = _thresholds(measured, chosen.levels)
    if not policy.pool:
        return thresholds, None
    prior_tokens = _FIRST_PRIOR_TOKENS
    if policy.pool == "blended":
        prior_tokens = _fit_prior_tokens(texts, measured, chosen, np.exp(price) * (matrices - 1))
    return thresholds, pool_policy(measured, chosen.pool_shares, policy.pool, prior_tokens)
