"""Ops of the `clada` domain, each defined once."""

from clada.ops.load_signal import LOAD_SIGNAL
from clada.ops.quantized_ffn import QUANTIZED_FFN
from clada.ops.quantized_linear import QUANTIZED_LINEAR
from clada.ops.record import DOMAIN, PLUGIN_ATTRIBUTES, VERSION, Op
from clada.ops.sparse_ffn import SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.sparse_linear import SPARSE_LINEAR

# By name of the op with weights in floating point.
QUANTIZED: dict[str, Op] = {**QUANTIZED_FFN, SPARSE_LINEAR.name: QUANTIZED_LINEAR}
OPS: dict[str, Op] = {
    op.name: op for op in (SPARSE_GATED_FFN, SPARSE_FFN, *QUANTIZED.values(), SPARSE_LINEAR, LOAD_SIGNAL)
}

__all__ = [
    "DOMAIN",
    "LOAD_SIGNAL",
    "OPS",
    "PLUGIN_ATTRIBUTES",
    "QUANTIZED",
    "QUANTIZED_FFN",
    "QUANTIZED_LINEAR",
    "SPARSE_FFN",
    "SPARSE_GATED_FFN",
    "SPARSE_LINEAR",
    "VERSION",
    "Op",
]
