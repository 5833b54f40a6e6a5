"""What is timed for LoadSignal: ours, and the same in torch."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from clada.benchmark.contender import Contender
from clada.ops import LOAD_SIGNAL
from clada.ops.torch import torch_op
from gpu_suite.library import Call, Kernels
from gpu_suite.repeats import contender

_KNOTS = 33
_ATTRIBUTES = {"surprisal_weight": 0.5}
_CACHES = 4


def torch_name(element: str) -> str:
    """What the same in torch is called."""
    return f"torch {element}"


def _inputs(vocabulary: int, dtype: torch.dtype, device: str, count: int) -> list[dict[str, torch.Tensor]]:
    """So many calls' inputs, batch 1, each with logits of its own."""
    generator = torch.Generator(device).manual_seed(vocabulary)
    fixed: dict[str, Any] = {
        "token": np.array([vocabulary // 2]),
        "surprisal_knots": np.linspace(0, 2 * np.log(vocabulary), _KNOTS, dtype=np.float32),
        "entropy_knots": np.linspace(0, np.log(vocabulary), _KNOTS, dtype=np.float32),
        "scale_knots": np.array([1.3, 1.2, 1.0, 0.8, 0.8], np.float32),
    }
    shared = {name: torch.from_numpy(array).to(device) for name, array in fixed.items()}
    logits = (3 * torch.randn((count, 1, vocabulary), generator=generator, device=device)).to(dtype)
    return [{"logits": logits[number], **shared} for number in range(count)]


def _launch(calls: Sequence[Call]) -> None:
    for call in calls:
        call.launch()


def _torch(inputs: Sequence[dict[str, torch.Tensor]]) -> None:
    with torch.inference_mode():
        for tensors in inputs:
            torch_op(LOAD_SIGNAL)(*tensors.values(), *_ATTRIBUTES.values())


def load_contenders(kernels: Kernels, vocabulary: int, element: str, cache_bytes: int, graph: bool) -> list[Contender]:
    """All contenders for one sequence; together their logits are larger than the cache, several times."""
    dtype = getattr(torch, element)
    size = vocabulary * dtype.itemsize
    inputs = _inputs(vocabulary, dtype, kernels.device.name, -(-_CACHES * cache_bytes // size))
    calls = [Call(kernels, LOAD_SIGNAL, tensors, _ATTRIBUTES) for tensors in inputs]
    return [
        contender(kernels.device, name, run, len(inputs), graph, always_bytes=size)
        for name, run in (
            (torch_name(element), partial(_torch, inputs)),
            (f"ours {element}", partial(_launch, calls)),
        )
    ]
