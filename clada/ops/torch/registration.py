"""Registration of the ops with torch.library: schema, checks and fake from the records, kernels from `eager`."""

from collections.abc import Callable
from typing import Any

import torch

from clada.ops import DOMAIN, LOAD_SIGNAL, OPS, QUANTIZED, SPARSE_FFN, SPARSE_GATED_FFN, SPARSE_LINEAR, Op
from clada.ops.record import check_inputs
from clada.ops.torch import eager

_KERNELS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    SPARSE_GATED_FFN.name: eager.sparse_gated_ffn,
    SPARSE_FFN.name: eager.sparse_ffn,
    SPARSE_LINEAR.name: eager.sparse_linear,
    LOAD_SIGNAL.name: eager.load_signal,
}
_KERNELS |= {op.name: eager.dequantizing(OPS[name], _KERNELS[name]) for name, op in QUANTIZED.items()}
_library = torch.library.Library(DOMAIN, "DEF")


def _schema(op: Op) -> str:
    tensors = [f"Tensor {spec.name}" for spec in op.inputs]
    attributes = [f"{type(a.default).__name__} {a.name}" for a in op.attributes]
    return f"{op.name}({', '.join(tensors + attributes)}) -> ({', '.join(['Tensor'] * len(op.outputs))})"


def _eager(op: Op) -> Callable[..., tuple[torch.Tensor, ...]]:
    def call(*args: Any) -> tuple[torch.Tensor, ...]:
        tensors, values = args[: len(op.inputs)], args[len(op.inputs) :]
        dtypes = [str(t.dtype).removeprefix("torch.") for t in tensors]
        attributes = dict(zip((a.name for a in op.attributes), values, strict=True))
        check_inputs(op, [tuple(t.shape) for t in tensors], dtypes, attributes)
        return _KERNELS[op.name](*args)

    return call


def _fake(op: Op) -> Callable[..., tuple[torch.Tensor, ...]]:
    def call(*args: Any) -> tuple[torch.Tensor, ...]:
        sizes: dict[str, Any] = {}
        for spec, tensor in zip(op.inputs, args, strict=False):
            for axis, size in zip(spec.axes, tensor.shape, strict=True):
                sizes.setdefault(axis, size)
        attributes = dict(zip((a.name for a in op.attributes), args[len(op.inputs) :], strict=True))
        sizes |= op.output_sizes(sizes, attributes)
        first = args[0]
        return tuple(
            first.new_empty(
                [sizes[axis] for axis in spec.axes],
                dtype=first.dtype if spec.dtype == "T" else getattr(torch, spec.dtype),
            )
            for spec in op.outputs
        )

    return call


for _op in OPS.values():
    _library.define(_schema(_op))
    _library.impl(_op.name, _eager(_op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{DOMAIN}::{_op.name}", _fake(_op), lib=_library)


def torch_op(op: Op) -> Any:
    """Registered torch op of a record: call it with all inputs and attributes, in order."""
    return getattr(getattr(torch.ops, DOMAIN), op.name).default
