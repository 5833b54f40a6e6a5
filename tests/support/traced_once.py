"""Torch's exporter, which takes some ten seconds a graph, run once for each graph that a run of the tests asks for.

What it makes is kept in a folder of the run, which its processes share. What clada does before and after is done anew.
"""

import functools
import hashlib
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers import PreTrainedConfig

from clada.exporter.model.calibrated import Calibrated
from clada.ops.record import Op

_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)
# What transformers notes of where a model and its configuration come from, which no graph does.
_OF_LOADING = {"name_or_path", "_weight_conversions", "_use_kernels"}
_OF_A_SAVED_CONFIG = {"_name_or_path", "architectures", "dtype"}


def _described(value: Any) -> Any:
    """Properties of an object that a graph may follow from, as a value whose repr is the same in every process."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_described(item) for item in value), key=repr)
    if isinstance(value, dict):
        return [(name, _described(item)) for name, item in value.items()]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return value.dtype, tuple(value.shape), value.stride(), hashlib.sha256(content.data).hexdigest()
    if isinstance(value, nn.Module):
        kept = {name: item for name, item in vars(value).items() if name not in _OF_LOADING}
        return type(value).__qualname__, _described(kept)
    if isinstance(value, PreTrainedConfig):
        settings = {name: item for name, item in value.to_dict().items() if name not in _OF_A_SAVED_CONFIG}
        return json.dumps(settings, sort_keys=True, default=str), value._attn_implementation
    if isinstance(value, Calibrated):  # its tensors come in as arguments
        return value.load_map.surprisal_weight, [anticipation.site for anticipation in value.anticipations]
    if isinstance(value, Op):
        return value.name
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return value.__module__, value.__qualname__
    return type(value).__qualname__


def _shapes(value: Any, seen: dict[int, int]) -> Any:
    """Arguments without their values: the exporter traces any values of these shapes.

    A tensor that is given twice is one input: each has a number by its object, which `seen` holds.
    """
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), seen.setdefault(id(value), len(seen))
    if isinstance(value, (list, tuple)):
        return [_shapes(item, seen) for item in value]
    return [(name, _shapes(item, seen)) for name, item in value.items()]


def traced_once(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """A stand-in for `torch.onnx.export` as the exporter calls it, which takes a graph from the folder if it is there.

    All callers get a graph as it is read from there, so that the first one's is no other than the next one's.
    """

    @functools.wraps(export)
    def once(module: nn.Module, arguments: tuple[()], *, kwargs: dict[str, Any], **options: Any) -> Any:
        told = _described(module), _shapes(kwargs, {}), _described(options)
        path = folder / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                program = export(module, arguments, kwargs=kwargs, **options)
                onnx_ir.save(program.model, path)
        return types.SimpleNamespace(model=onnx_ir.load(path))

    return once
