"""Ops of the `clada` domain, each defined once."""

from clada.ops.cached_attention import CACHED_ATTENTION
from clada.ops.gated_activation import GATED_ACTIVATION
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
# Of the graph with an in-place cache; kernels of ours are for CPUs alone, and elsewhere their bodies are computed.
OPS_OF_CPUS: dict[str, Op] = {op.name: op for op in (CACHED_ATTENTION, GATED_ACTIVATION)}

__all__ = [
    "CACHED_ATTENTION",
    "DOMAIN",
    "GATED_ACTIVATION",
    "LOAD_SIGNAL",
    "OPS",
    "OPS_OF_CPUS",
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
