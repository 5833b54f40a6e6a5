"""Input embedding of a graph whose table is in another type than what the graph computes in."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clada.exporter.model.held_weights import HeldEmbedding, held_weight


class _NarrowTable(nn.Embedding):
    """nn.Embedding with a table in a type of its own, for what a family makes of its rows."""

    computes_in: torch.dtype

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The table as the family's own code sees it."""
        return self._table.to(self.computes_in)

    @property
    def _table(self) -> Tensor:
        table = self._parameters["weight"]
        assert table is not None
        return table

    def forward(self, ids: Tensor) -> Tensor:
        """Embed tokens i64[B, S] to T[B, S, D]."""
        return functional.embedding(ids, self._table).to(self.computes_in)


def _narrowed(embedding: nn.Embedding, stored: torch.dtype, computes_in: torch.dtype) -> nn.Embedding:
    """The same embedding with a table in another type."""
    narrow = copy.copy(embedding)
    table = held_weight(embedding).values(stored)
    narrow._parameters = {"weight": nn.Parameter(table, requires_grad=False)}
    kind = nn.Embedding if isinstance(embedding, HeldEmbedding) else type(embedding)
    # Some families scale what nn.Embedding gives: that alone is another's here.
    is_plain = kind is nn.Embedding
    narrow.__class__ = _NarrowTable if is_plain else type(f"Narrow{kind.__name__}", (kind, _NarrowTable), {})
    narrow.computes_in = computes_in  # type: ignore[assignment]
    return narrow


@contextmanager
def narrow_embedding(model: Any, stored: torch.dtype | None) -> Iterator[None]:
    """Make a model traceable with the table of its input embedding in a type, within the context; None leaves it."""
    if stored is None:
        yield
        return
    embedding = model.get_input_embeddings()
    try:
        model.set_input_embeddings(_narrowed(embedding, stored, model.dtype))
        yield
    finally:
        model.set_input_embeddings(embedding)
