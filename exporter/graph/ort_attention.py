"""Attention with an in-place KV cache: ONNX Runtime's GroupQueryAttention, for every family alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from clada.errors import CladaError
from clada.exporter.graph.rewrites import DOMAIN
from clada.exporter.graph.rotary import rotary_ops

OP = "GroupQueryAttention"
_ATTENTION = "clada_in_place"
_REFUSAL = f"{OP} cannot stand for the model's attention"
# Arguments of an attention function that change its result in ways the op cannot express.
_REFUSED = ("s_aux", "position_bias")
_WIDTH_MULTIPLE = 8
_WINDOW = "local_window_size"
_MINIMUM_ONNXRUNTIME = "1.20"
# Earlier releases count one token more into the window: a graph cannot be right in both.
_MINIMUM_ONNXRUNTIME_WITH_WINDOW = "1.24"


class BufferCache(DynamicCache):  # type: ignore[misc] # of a package that mypy does not read
    """KV cache as buffers of any capacity that attention writes into; a call's own keys and values pass unchanged.

    Args:
        past: Keys and values T[1, H, C, d] for each layer.
        attention_mask: i64[1, T], all ones; T is at least how much of the buffers is text once this call is done.
        position_ids: i64[1, S], the places that this call writes.
    """

    def __init__(self, past: list[tuple[Tensor, Tensor]], attention_mask: Tensor, position_ids: Tensor) -> None:
        super().__init__()
        for keys, values in past:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            self.layers.append(layer)
        # On a GPU the op wants the total on the CPU and the last place on the GPU: a shape is on the CPU already.
        self.total = torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32)
        self.last = position_ids[:, -1].to(torch.int32)

        # Of each layer that was updated; attention must be given them as they are.
        self.written: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values unchanged; a model's attention layer calls this before attention."""
        self.written[layer_idx] = key_states, value_states
        return key_states, value_states


def _check(module: nn.Module, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
    """Raise CladaError for an attention that the op does not support."""
    reasons = [f"its attention takes {name}" for name in _REFUSED if options.get(name) is not None]
    if mask is not None:
        reasons.append("it makes an attention mask of its own")
    if not getattr(module, "is_causal", True) or options.get("is_causal") is False:
        reasons.append("its attention is not causal")
    if key.shape[-1] != value.shape[-1]:
        reasons.append(f"its keys are {key.shape[-1]} wide and its values {value.shape[-1]}")
    elif key.shape[-1] % _WIDTH_MULTIPLE:
        reasons.append(f"its heads are {key.shape[-1]} wide, which is no multiple of {_WIDTH_MULTIPLE}")
    if reasons:
        raise CladaError(f"{_REFUSAL}: {'; '.join(reasons)}")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    buffers: BufferCache,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function as transformers calls it: T[1, H, S, d] each, rotary embedding applied."""
    _check(module, key, value, attention_mask, options)
    index = int(module.layer_idx)  # type: ignore[arg-type]
    # By their values, which a trace does not have: `check_in_place` runs before it.
    if not torch.compiler.is_exporting() and not all(map(torch.equal, buffers.written[index], (key, value))):
        raise CladaError(f"{_REFUSAL}: it changes keys or values after they are kept")
    layer: Any = buffers.layers[index]
    heads, length, width = query.shape[1:]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": float(scaling)}
    if sliding_window is not None:
        attributes[_WINDOW] = sliding_window
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    rows = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    # Not computed here: what it must give is what PyTorch gives with the model's own attention.
    output, layer.keys, layer.values = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{OP}",
        (*rows, layer.keys, layer.values, buffers.last, buffers.total),
        attributes,
        dtypes=(query.dtype,) * 3,
        shapes=([1, length, heads * width], layer.keys.shape, layer.values.shape),
        version=1,
    )
    return output.unflatten(2, (heads, width)), None


AttentionInterface.register(_ATTENTION, _attention)


def check_in_place(decoder: nn.Module, arguments: dict[str, Any]) -> None:
    """Run a decoder once within `in_place_attention`, where it cannot be traced yet, to see whether the op is used.

    Raises:
        CladaError: The op does not support the model's attention, or that is code which does not ask for one.
    """
    try:
        present = decoder(**arguments)[1]
    except CladaError:
        raise
    except Exception as error:  # of the model's own code, which meets buffers that are not for it
        raise CladaError(f"{_REFUSAL}: it is code of its own ({type(error).__name__})") from error
    past = [tensor for pair in arguments["past"] for tensor in pair]
    if any(after is before for after, before in zip(present, past, strict=True)):
        raise CladaError(f"{_REFUSAL}: it is code of its own")


@contextmanager
def in_place_attention(model: Any) -> Iterator[None]:
    """Make the model attend through the op, within the context, into the buffers given as its argument `buffers`."""
    before = model.config._attn_implementation
    with rotary_ops(model):
        model.set_attn_implementation(_ATTENTION)
        try:
            yield
        finally:
            model.set_attn_implementation(before)


def minimum_onnxruntime(traced: onnx_ir.Model) -> str:
    """First release of ONNX Runtime that computes a graph with an in-place cache as PyTorch does."""
    windows = [node.attributes[_WINDOW].value for node in traced.graph if _WINDOW in node.attributes]
    return _MINIMUM_ONNXRUNTIME_WITH_WINDOW if any(int(window) >= 0 for window in windows) else _MINIMUM_ONNXRUNTIME
