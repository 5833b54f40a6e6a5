"""Torch ops `torch.ops.clada.*`: eager, fake, and ready for export; needs torch."""

from clada.ops.torch.eager import ACTIVATIONS, dequantized
from clada.ops.torch.registration import torch_op

__all__ = ["ACTIVATIONS", "dequantized", "torch_op"]
