"""Allocation of reads among layers, neurons and tokens: thresholds and pool sizes for one price of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Bins of a token's cost of losing a neuron, in powers of ten of nats; beyond them everything is kept or dropped.
_EDGES = torch.linspace(-16, 4, 161, dtype=torch.float64)


@dataclass
class CostHistogram:
    """Histogram, for each neuron of one layer, of the cost of losing it.

    Args:
        counts: f64[F, N + 1], tokens by bin of _EDGES.
        sums: f64[F, N + 1], their costs.
        tokens: Number of tokens.
    """

    counts: Tensor
    sums: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, neurons: int) -> "CostHistogram":
        """Create a histogram of no tokens."""
        shape = (neurons, len(_EDGES) + 1)
        return cls(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    def add(self, cost: Tensor) -> None:
        """Count the costs f32[T, F] of T tokens, nats."""
        bins = torch.bucketize(cost.clamp_min(1e-30).log10().double(), _EDGES).t()
        self.counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
        self.sums.scatter_add_(1, bins, cost.t().double())
        self.tokens += len(cost)

    def above(self, price: float) -> tuple[Tensor, Tensor]:
        """Share of tokens, f64[F] by neuron, whose cost is at least the price, and their mean gain above it."""
        first = int(torch.bucketize(torch.tensor(np.log10(price), dtype=torch.float64), _EDGES)) + 1
        kept = self.counts[:, first:].sum(1)
        gain = self.sums[:, first:].sum(1) - price * kept
        return kept / self.tokens, gain.clamp_min(0) / self.tokens


@dataclass(frozen=True)
class Plan:
    """Thresholds and pools that follow from one price of a row.

    Args:
        levels: For each layer, tau: a neuron is kept where |a_i| c_i is not below it.
        pool_shares: For each layer, the share of its neurons that a pool holds, in (0, 1].
    """

    levels: list[float]
    pool_shares: list[float]


def plan(
    histograms: Sequence[CostHistogram], price: float, matrices: int, *, with_pool: bool, allocation: bool
) -> Plan:
    """Choose the cheapest plan at a price: the minimum of KL + price * rows, to second order and neuron by neuron.

    A kept neuron costs the rows of the outward matrices, so it is kept where losing it costs as much; a neuron in the
    pool costs its inward row for every token, so it is in where what is kept of it gains as much on the mean.

    Args:
        histograms: Histogram of each layer.
        price: Nats per row.
        matrices: Number of weight matrices of a layer; all but one are read where a neuron is kept.
        with_pool: Whether there is a pool.
        allocation: Whether layers differ as their costs do; if not, each has the mean sparsity and the mean pool.
    """
    active_price = price * (matrices - 1)
    level = float(np.sqrt(2 * active_price))
    pools, actives = [], []
    for histogram in histograms:
        kept, gain = histogram.above(active_price)
        inside = gain >= price if with_pool else torch.ones_like(gain, dtype=torch.bool)
        pools.append(max(float(inside.double().mean()), 1 / len(gain)))
        actives.append(float(kept.mean()))
    if allocation:
        return Plan([level] * len(pools), pools)
    share = float(np.mean(actives))
    return Plan([level_of(h, share) for h in histograms], [float(np.mean(pools))] * len(pools))


def level_of(histogram: CostHistogram, share: float) -> float:
    """Level that keeps a share of all neurons."""
    kept = histogram.counts.sum(0).flip(0).cumsum(0).flip(0)[1:] / histogram.counts.sum()
    logarithm = np.interp(share, kept.flip(0).numpy(), _EDGES.flip(0).numpy())
    return float(np.sqrt(2 * 10**logarithm))


def threshold(level: float, importance: Tensor) -> Tensor:
    """f32[F], level / c_i; a neuron that adds nothing gets the largest finite threshold."""
    largest = torch.finfo(torch.float32).max
    quotient = torch.full_like(importance, level) / importance
    return torch.nan_to_num(quotient, nan=0.0, posinf=largest).clamp(max=largest).float()


def predicted_cost(histograms: Sequence[CostHistogram], price: float, matrices: int, with_pool: bool) -> float:
    """Share of the feed-forward weights' bytes that a plan at a price reads, if its pools were the calibration's."""
    read, neurons = 0.0, 0
    for histogram in histograms:
        kept, gain = histogram.above(price * (matrices - 1))
        inside = (gain >= price if with_pool else torch.ones_like(gain, dtype=torch.bool)).double()
        read += float((inside * (1 + (matrices - 1) * kept)).sum())
        neurons += len(gain)
    return read / (matrices * neurons)
