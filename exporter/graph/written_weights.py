"""Weights of a graph: stand-ins without content while it is traced, and values one after another as it is written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor, nn
from torch.nn import functional

from clada.exporter.model.held_weights import HeldEmbedding
from clada.exporter.model.sparse_products import SparseProduct, sparse_products
from clada.ops import SPARSE_LINEAR


@dataclass(frozen=True)
class WrittenWeight:
    """Tensor of a product's weights.

    Args:
        name: Name of its initializer.
        stand_in: Tensor of its type and shape, all of whose elements are one number in memory.
        written: Its values, which are made when they are asked for, and not kept.
    """

    name: str
    stand_in: Tensor
    written: onnx_ir.TensorProtocol


def _stand_in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype).expand(tensor.shape)


def _written(name: str, tensor: Tensor, dtype: torch.dtype) -> onnx_ir.TensorProtocol:
    return onnx_ir.LazyTensor(
        lambda: TorchTensor(tensor.to(dtype), name=name),
        dtype=from_torch_dtype(dtype),
        shape=onnx_ir.Shape(tensor.shape),
        name=name,
    )


def _of_product(product: SparseProduct, dtype: torch.dtype) -> Iterator[WrittenWeight]:
    for key, tensor in product.rows.tensors.items():
        name = f"{product.name}.{key}"
        of_graph = dtype if product.rows.op is SPARSE_LINEAR else tensor.dtype
        yield WrittenWeight(name, _stand_in(tensor, of_graph), _written(name, tensor, of_graph))


def product_weights(model: Any, dtype: torch.dtype) -> list[WrittenWeight]:
    """Weights of all of a model's products, in order, as the ops of its graph take them; none that skip neurons.

    Args:
        model: A patched causal LM.
        dtype: Type to write those in that are not quantized.
    """
    return [weight for product in sparse_products(model) for weight in _of_product(product, dtype)]


class _StandInEmbedding(nn.Module):
    """Embedding as the graph has it; for tracing only."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Tensor of the output's shape [B, S, D]; not its values."""
        return functional.embedding(ids, self.weight)


@contextmanager
def stand_in_embedding(model: Any) -> Iterator[Mapping[str, onnx_ir.TensorProtocol]]:
    """Make a model traceable whose input embedding is held, within the context; others are left as they are.

    Yields:
        The embedding's values by the name of its initializer, as the tracer names what a module of Decoder.model holds.
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, HeldEmbedding):
        yield {}
        return
    path = next(path for path, module in model.named_modules() if module is embedding)
    table, name = embedding.held.tensor, f"model.{path}.weight"
    try:
        model.set_input_embeddings(_StandInEmbedding(_stand_in(table, model.dtype)))
        yield {name: _written(name, table, model.dtype)}
    finally:
        model.set_input_embeddings(embedding)
