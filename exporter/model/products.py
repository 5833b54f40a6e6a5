"""Products of a causal LM, found by their inputs: linear layers with the same input are one product."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clada.exporter.model.held_weights import HeldTensor, held_weight
from clada.exporter.model.hooks import registered, shown_inputs

# The start of a path that says which layer it is in.
_LAYER = re.compile(r".*?\.\d+\.")


@dataclass(frozen=True, eq=False)
class Product:
    """Linear layers that read the same input, as an attention's queries, keys and values do.

    Args:
        names: Paths of the linear layers from the model, in the order in which they run.
        linears: The layers.
        of_last: Whether they are given each text's last token alone where only its logits are wanted: the output
            matrix, and what some models have before it.
    """

    names: tuple[str, ...]
    linears: tuple[nn.Linear, ...]
    of_last: bool

    @property
    def name(self) -> str:
        """Readable name of all its layers: the path of the first, and the last part of the others' paths."""
        return "+".join([self.names[0], *(name.rpartition(".")[2] for name in self.names[1:])])

    @property
    def inputs(self) -> int:
        """Number of inputs, D."""
        return self.linears[0].in_features

    @property
    def outputs(self) -> int:
        """Number of weights per input, N."""
        return sum(linear.out_features for linear in self.linears)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs


def own_weights(product: Product) -> list[Tensor]:
    """Weights [N, D] of each layer of a product, in the type that they are held in."""
    held = [held_weight(linear) for linear in product.linears]
    return [one.tensor if isinstance(one, HeldTensor) else one.values() for one in held]


def joined_rows(product: Product) -> HeldTensor:
    """Weights [D, N] of all layers of a product, a row per input, in the type that they are held in."""
    return HeldTensor(torch.cat([weight.t() for weight in own_weights(product)], dim=1).contiguous())


@torch.no_grad()
def find_products(model: Any) -> list[Product]:
    """Find the products of a model, in the order in which they run; the output matrix is the last one's.

    A linear layer that does not run is in none.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linears = list(names)
    groups: list[tuple[Tensor, list[nn.Linear]]] = []

    def note(place: int, x: Tensor) -> None:
        if groups and groups[-1][0] is x:
            groups[-1][1].append(linears[place])
        else:
            groups.append((x, [linears[place]]))

    ids = torch.zeros(1, 2, dtype=torch.int64)
    with shown_inputs(linears, note):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return [
        Product(tuple(names[linear] for linear in group), tuple(group), of_last=x[..., 0].numel() < ids.numel())
        for x, group in groups
    ]


def layer_starts(products: Sequence[Product]) -> list[int]:
    """Index of the first product of each decoder layer, and of the output matrix, which is the last.

    Products before the layers, such as those of an embedding narrower than the model, are a layer of their own.
    """
    layers = [match[0] if (match := _LAYER.match(product.name)) else "" for product in products[:-1]]
    return [at for at, layer in enumerate(layers) if at == 0 or layer != layers[at - 1]] + [len(layers)]


@contextmanager
def input_hooks(products: Sequence[Product], hook: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function, within the context, with each product's index and input T[..., D].

    What the function returns takes the input's place, for all of the product's layers; None leaves it.
    """
    seen: dict[int, tuple[Tensor, Tensor | None]] = {}

    def show(index: int, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # Once for all layers of a product.
        if index not in seen or seen[index][0] is not args[0]:
            seen[index] = args[0], hook(index, args[0])
        changed = seen[index][1]
        return None if changed is None else (changed, *args[1:])

    with registered(
        linear.register_forward_pre_hook(lambda _linear, args, index=index: show(index, args))
        for index, product in enumerate(products)
        for linear in product.linears
    ):
        yield
