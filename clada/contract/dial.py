"""Dial of an artifact that skips inputs: the effort for each share of the weights' bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from clada.contract.typed_json import Within
from clada.errors import CladaError

_Positive = Annotated[float, Within(0, 1e30)]
_Share = Annotated[float, Within(-1e-6, 1 + 1e-6)]


@dataclass(frozen=True)
class DialPoint:
    """Measurements at one effort on the calibration text.

    Args:
        effort: The factor on the calibrated thresholds.
        bytes: Share of the weights' bytes that a token read.
        divergence_nats: KL divergence from the dense model, a token.
        agreement: Share of tokens whose most likely successor is the dense model's.
    """

    effort: _Positive
    bytes: _Share
    divergence_nats: _Positive
    agreement: _Share


def effort_for(share: float, points: Sequence[tuple[float, float]]) -> float:
    """Effort that reads a share of the bytes, interpolated linearly between the measured efforts.

    Args:
        share: Share of the weights' bytes.
        points: Effort and share, from the lowest effort and the largest share.
    """
    efforts, shares = zip(*points, strict=True)
    return float(np.interp(share, shares[::-1], efforts[::-1]))


def effort_of_bytes(share: float, dial: Sequence[DialPoint]) -> float:
    """Effort with which an artifact reads a share of the weights' bytes; 1 is all of them, bit-identical to dense.

    Raises:
        CladaError: The share is not between the least that was measured and 1.
    """
    least = dial[-1].bytes
    if not least <= share <= 1:
        raise CladaError(f"bytes is {share}; the artifact was calibrated for {least:.3g} to 1 of the weights' bytes")
    return 0.0 if share == 1 else effort_for(share, [(point.effort, point.bytes) for point in dial])
