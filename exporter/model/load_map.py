"""Calibrated constants of the load signal."""

from dataclasses import dataclass

from torch import Tensor

# A load that none reaches: where there is no pool to open.
NO_POOL = 2.0


@dataclass(frozen=True)
class LoadMap:
    """Calibrated constants of the load signal.

    Args:
        surprisal_knots: f32[K], quantiles of surprisal in nats.
        entropy_knots: f32[K], quantiles of entropy in nats.
        scale_knots: f32[M], the factor on the thresholds at load 0, 1/(M-1), ..., 1; non-increasing.
        reanalysis_load: f32 scalar, the load from which the pool opens; there is none where inputs are skipped.
        surprisal_weight: Share of surprisal in the load; the rest is entropy.
        token_scale: f32[V], the factor on the thresholds by token id, in the place of that by load; None for load.
    """

    surprisal_knots: Tensor
    entropy_knots: Tensor
    scale_knots: Tensor
    reanalysis_load: Tensor
    surprisal_weight: float
    token_scale: Tensor | None = None
