"""Eager torch kernels of the ops: products in the tensors' own dtype, nearly everything else in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clada.ops import Op
from clada.ops.quantized_matrices import matrix_names

Result = tuple[Tensor, ...]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "relu": functional.relu,
}
_TINY = torch.finfo(torch.float32).tiny


def _large(a: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    column = scale.unsqueeze(-1)
    return (column >= 0) & (a != 0) & ~(a.abs() < column * threshold)


def _kept(a: Tensor, threshold: Tensor, scale: Tensor, pool: Tensor) -> Tensor:
    return pool.unsqueeze(1) & _large(a, threshold, scale)


def _count_and_score(kept: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    energy = h.square()
    total = energy.sum(-1, keepdim=True)
    score = (energy / total.masked_fill(total == 0, 1)).sum(1)
    return kept.sum(-1, dtype=torch.int32), score


def sparse_gated_ffn(
    x: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    threshold: Tensor,
    scale: Tensor,
    pool: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `clada.ops.SPARSE_GATED_FFN`."""
    a = ACTIVATIONS[activation](functional.linear(x, w_gate).float())
    kept = _kept(a, threshold, scale, pool)
    h = torch.where(kept, a * functional.linear(x, w_up).float(), 0)
    return h.to(x.dtype) @ w_down, *_count_and_score(kept, h)


def sparse_ffn(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    threshold: Tensor,
    scale: Tensor,
    pool: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `clada.ops.SPARSE_FFN`."""
    a = ACTIVATIONS[activation](functional.linear(x, w_in, b_in).float())
    kept = _kept(a, threshold, scale, pool)
    h = torch.where(kept, a, 0)
    return h.to(x.dtype) @ w_out + b_out, *_count_and_score(kept, h)


def sparse_linear(x: Tensor, w: Tensor, threshold: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """See `clada.ops.SPARSE_LINEAR`."""
    kept = _large(x.float(), threshold, scale)
    return torch.where(kept, x, 0) @ w.to(x.dtype), kept.sum(-1, dtype=torch.int32)


def dequantized(packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Dequantize packed codes i8[F, P] with scales [F, N] to weights f32[F, D]."""
    codes = packed
    if bits == 4:
        codes = torch.stack([packed << 4, packed & ~0xF], dim=-1) >> 4
    of_block = packed.shape[1] * 8 // bits // max(1, scales.shape[1])
    blocks = codes.reshape(*scales.shape, of_block).float() * scales.float().unsqueeze(-1)
    return blocks.flatten(1)


def dequantizing(op: Op, kernel: Callable[..., Result]) -> Callable[..., Result]:
    """Derive the kernel of an op's quantized variant from that of the op itself; products in float32."""
    tensor_count = len(op.inputs) - 1 + len(matrix_names(op))

    def call(x: Tensor, *args: Any) -> Result:
        given = iter(args[:tensor_count])
        bits, _block_size, *attributes = args[tensor_count:]
        tensors = []
        for spec in op.inputs[1:]:
            tensor = next(given)
            if spec.role == "matrix":
                tensor = dequantized(tensor, next(given), bits)
            tensors.append(tensor.float() if spec.dtype == "T" else tensor)
        y, *others = kernel(x.float(), *tensors, *attributes)
        return y.to(x.dtype), *others

    return call


def _distribution(value: Tensor, knots: Tensor) -> Tensor:
    low, width = knots[:-1], knots.diff().clamp_min(_TINY)
    return ((value.unsqueeze(-1) - low) / width).clamp(0, 1).mean(-1)


def load_signal(
    logits: Tensor,
    token: Tensor,
    surprisal_knots: Tensor,
    entropy_knots: Tensor,
    scale_knots: Tensor,
    surprisal_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `clada.ops.LOAD_SIGNAL`."""
    # In float64: float32's own sum of a large vocabulary is off by more than any kernel of ours.
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    surprisal = -log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1).float()
    entropy = -torch.where(p == 0, 0, p * log_p).sum(-1).float()
    load = surprisal_weight * _distribution(surprisal, surprisal_knots)
    load = load + (1 - surprisal_weight) * _distribution(entropy, entropy_knots)
    steps = scale_knots.diff()
    segments = torch.arange(len(steps), device=load.device)
    along = (load.unsqueeze(-1) * len(steps) - segments).clamp(0, 1)
    return scale_knots[0] + (along * steps).sum(-1), load, surprisal, entropy
