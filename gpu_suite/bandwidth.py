"""The floor: how fast the card copies memory."""

from collections.abc import Callable

import torch

from gpu_suite.device import Device

_FEWEST_BYTES = 1 << 29
_CACHES = 8


def copy_bandwidth(device: Device, cache_bytes: int) -> Callable[[], float]:
    """What measures it: bytes read and written in a second by torch's copy of a tensor far larger than the cache."""
    size = max(_FEWEST_BYTES, _CACHES * cache_bytes)
    source = torch.ones(size, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)

    def copy() -> float:
        target.copy_(source)
        return 0.0

    def measure() -> float:
        return 2 * size / device.timed(copy)[0]

    measure()
    return measure
