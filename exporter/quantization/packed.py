"""Packed weights in the traced graph: in our ops, and in DequantizeLinear before the other products."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import Tensor, nn

from clada.contract.artifact import data_name
from clada.exporter.model.families import family_of
from clada.exporter.model.patch import SparseLayer, decoder_layers, replace, sparse_layers
from clada.exporter.quantization.merged_products import AND, BLOCK_AXIS, UNPACKING, widths
from clada.exporter.quantization.quantize import Packed, Quantized, linear_modules
from clada.ops import QUANTIZED_FFN, QUANTIZED_LINEAR, graph_names
from clada.ops.block_quantization import pack, unpack
from clada.ops.quantized_matrices import matrix_names, scales_name

# Around a module's path in the name of its codes, as the tracer names what a module of Decoder.model holds.
_PREFIX, _SUFFIX = "model.", ".weight"


class PackedLinear(nn.Module):
    """Linear module as the graph has it; for tracing only."""

    def __init__(self, packed: Packed, block_size: int, linear: nn.Linear) -> None:
        super().__init__()
        codes = torch.from_numpy(unpack(packed.codes.numpy(), packed.bits))
        scales = packed.scales.to(linear.weight.dtype)
        self.weight = nn.Parameter(codes.t().contiguous(), requires_grad=False)
        self.scales = nn.Parameter(scales.t().contiguous(), requires_grad=False)
        self.bias, self.block_size = linear.bias, block_size

    def forward(self, x: Tensor) -> Tensor:
        """Tensor of the output's shape for x T[..., K]; not its values."""
        weight = torch.onnx.ops.symbolic(
            UNPACKING,
            (self.weight, self.scales),
            {"axis": BLOCK_AXIS, "block_size": self.block_size},
            dtype=x.dtype,
            shape=self.weight.shape,
        )
        y = x @ weight
        return y if self.bias is None else y + self.bias


def _packed_layer(layer: SparseLayer, matrices: dict[str, Packed], block_size: int) -> SparseLayer:
    weights: dict[str, Tensor] = {}
    for name in layer.weight_names:
        if name in matrices:
            weights |= {name: matrices[name].codes, scales_name(name): matrices[name].scales}
        else:
            weights[name] = layer.get_parameter(name).data
    formats = {"bits": next(iter(matrices.values())).bits, "block_size": block_size}
    return SparseLayer(QUANTIZED_FFN[layer.op.name], layer.index, weights, layer.activation, layer.current, formats)


@contextmanager
def packed_weights(model: Any, quantized: Quantized | None) -> Iterator[None]:
    """Make a patched model traceable with packed weights, within the context; without them nothing changes."""
    if quantized is None:
        yield
        return
    with nullcontext() if quantized.products else _packed_layers(model, quantized):
        yield


@contextmanager
def _packed_layers(model: Any, quantized: Quantized) -> Iterator[None]:
    linears = linear_modules(model)
    site = family_of(model.config).site
    layers = sparse_layers(model)
    try:
        for path, packed in quantized.linears.items():
            replace(model, path, PackedLinear(packed, quantized.block_size, linears[path]))
        for layer, matrices in zip(layers, quantized.layers, strict=True):
            replace(decoder_layers(model)[layer.index], site, _packed_layer(layer, matrices, quantized.block_size))
        yield
    finally:
        for path, linear in linears.items():
            replace(model, path, linear)
        for layer in layers:
            replace(decoder_layers(model)[layer.index], site, layer)


def narrow(traced: onnx_ir.Model, quantized: Quantized) -> None:
    """Convert 4-bit codes, in place, to their own type: in torch they are bytes."""
    if quantized.bits != 4:
        return
    for node in traced.graph:
        codes = node.inputs[0] if node.op_type == UNPACKING else None
        if codes is None or codes.const_value is None or codes.dtype == onnx_ir.DataType.INT4:
            continue
        values = codes.const_value.numpy().astype(onnx_ir.DataType.INT4.numpy())
        codes.const_value = onnx_ir.tensor(values, name=codes.name)
        codes.dtype = onnx_ir.DataType.INT4


def _initializer(value: onnx_ir.Value | None) -> tuple[str, Tensor]:
    """Name and content of a node's input; 4-bit values as bytes."""
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy()
    is_narrow = value.const_value.dtype == onnx_ir.DataType.INT4
    return str(value.name), torch.from_numpy(array.astype(np.int8) if is_narrow else array.copy())


def _read_layer(node: onnx_ir.Node, bits: int) -> dict[str, Packed]:
    op = next(op for op in QUANTIZED_FFN.values() if op.name == node.op_type)
    given = dict(zip((spec.name for spec in op.inputs), node.inputs, strict=True))
    return {
        name: Packed(_initializer(given[name])[1], _initializer(given[scales_name(name)])[1], bits)
        for name in matrix_names(op)
    }


def _read_linears(node: onnx_ir.Node, bits: int) -> Iterator[tuple[str, Packed]]:
    (name, codes), (_, scales) = map(_initializer, node.inputs)
    sizes = widths(node)
    parts = zip(name.split(AND), codes.split(sizes, 1 - BLOCK_AXIS), scales.split(sizes, 1 - BLOCK_AXIS), strict=True)
    for module, some, their_scales in parts:
        packed = pack(some.t().contiguous().numpy(), bits)
        path = module.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        yield path, Packed(torch.from_numpy(packed), their_scales.t().contiguous().to(torch.float16), bits)


def _load(path: Path) -> onnx_ir.Model:
    """Load a model whose weights may be behind a link, as in the cache of Hugging Face's hub; onnx_ir follows none."""
    model = onnx_ir.load(path)
    data = path.with_name(data_name(path)).resolve()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor):
            value.const_value = onnx_ir.ExternalTensor(
                data.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                name=str(tensor.name),
                shape=tensor.shape,
                base_dir=data.parent,
            )
    return model


def read_packed(path: Path, products: Sequence[str] = ()) -> Quantized:
    """Read the packed weights of an exported graph whose weights are quantized.

    Args:
        path: Path of the graph.
        products: Names of those whose inputs are skipped, in the order of their thresholds.
    """
    nodes = list(_load(path).graph)
    if products:
        return _read_products(nodes, products)
    names = {op.name for op in QUANTIZED_FFN.values()}
    layers = [node for node in nodes if node.op_type in names]
    bits, block_size = (layers[0].attributes[name].as_int() for name in ("bits", "block_size"))
    linears = [linear for node in nodes if node.op_type == UNPACKING for linear in _read_linears(node, bits)]
    return Quantized(bits, block_size, [_read_layer(node, bits) for node in layers], dict(linears))


def _read_products(nodes: Sequence[onnx_ir.Node], names: Sequence[str]) -> Quantized:
    spec = [given.name for given in QUANTIZED_LINEAR.inputs]
    by_threshold = {
        str(node.inputs[spec.index("threshold")].name): node  # type: ignore[union-attr]
        for node in nodes
        if node.op_type == QUANTIZED_LINEAR.name
    }
    ours = [by_threshold[graph_names.threshold(index)] for index in range(len(names))]
    bits, block_size = (ours[0].attributes[name].as_int() for name in ("bits", "block_size"))
    codes, scales = ([_initializer(node.inputs[spec.index(name)])[1] for node in ours] for name in ("w", "s"))
    packed = [Packed(*of_product, bits) for of_product in zip(codes, scales, strict=True)]
    return Quantized(bits, block_size, products=dict(zip(names, packed, strict=True)))
