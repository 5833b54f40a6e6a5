"""Tensors in exactly as much memory as they need, between bytes that nobody may write."""

import math
from collections.abc import Sequence

import torch

_MARGIN = 512
_SENTINEL = 0xA5
# As float32, float16 and bfloat16 a NaN, as int32 -1.
_POISON = 0xFF
# What the launchers ask for; torch's own memory is aligned to 512.
_ALIGNMENT = 256


class Guarded:
    """Memory that is watched."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._blocks: list[tuple[torch.Tensor, int, int]] = []

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose content is poison."""
        size = math.prod(shape) * dtype.itemsize
        block = torch.full((2 * _MARGIN + _ALIGNMENT + size,), _SENTINEL, dtype=torch.uint8, device=self._device)
        start = _MARGIN + -(block.data_ptr() + _MARGIN) % _ALIGNMENT
        block[start : start + size] = _POISON
        self._blocks.append((block, start, size))
        return block[start : start + size].view(dtype).view(*shape)

    def poison(self) -> None:
        """Fill every tensor with NaN, or -1."""
        for block, start, size in self._blocks:
            block[start : start + size] = _POISON

    def damaged(self) -> bool:
        """Whether anything around the tensors was written."""
        return any(
            bool((block[:start] != _SENTINEL).any() or (block[start + size :] != _SENTINEL).any())
            for block, start, size in self._blocks
        )
