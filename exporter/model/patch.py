"""Replacement of a causal LM's feed-forward networks, in place, by modules that skip neurons."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clada.errors import CladaError
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.families import ACTIVATION_NAMES, FAMILIES, Family
from clada.ops.record import Op, bias_of, names_of
from clada.ops.torch import ACTIVATIONS, torch_op


@dataclass
class Sparsity:
    """State shared by the sparse sites of one model: read before a forward pass, written after it.

    A site is a layer's feed-forward network, which skips neurons, or a product, which skips inputs.

    Args:
        thresholds: f32[F] for each layer, or f32[D] for each product.
        compensation: f32[D] for each layer, added to its output where it is sparse; empty for none.
        anticipations: Probes that refine the scale, each from its site to the next one's.
        row_share: f32[P], the share of all products' weights that is in a row of each; None where neurons are skipped.
        scale: Factor on the thresholds, one for all tokens or f32[B, S]; 0 is dense, negative is padding.
        refined: f32[B, S], what the last anticipation of a pass made of the scale; None where none has.
        pools: bool[B, F] or bool[B, D] for each site, the neurons or inputs it may use, or None for all.
        load: f32[B, S], which anticipation reads; None where there is none.
        sparse: bool[B, S], the tokens whose outputs are compensated; None for those whose scale is above 0.
        last_only: Whether the output matrix is given each text's last token alone.
        active: After a pass: i32[B, S] for each site, how many neurons or inputs were kept.
        score: After a pass: f32[B, F] for each layer, how much each neuron contributed.
    """

    thresholds: list[Tensor]
    compensation: list[Tensor] = field(default_factory=list)
    anticipations: list[Anticipation] = field(default_factory=list)
    row_share: Tensor | None = None
    scale: float | Tensor = 0.0
    refined: Tensor | None = None
    pools: list[Tensor] | None = None
    load: Tensor | None = None
    sparse: Tensor | None = None
    last_only: bool = False
    active: list[Tensor] = field(default_factory=list)
    score: list[Tensor] = field(default_factory=list)

    @contextmanager
    def steered(self, scale: float | Tensor, pools: list[Tensor] | None = None, **others: Any) -> Iterator[None]:
        """Set these values for the layers, within the context; pools None is all neurons.

        Args:
            scale: See the class.
            pools: See the class.
            others: Other fields by name; what is not given stays as set, but for `load` and `sparse`, which are None,
                and `last_only`, which is False.
        """
        of_a_pass = {"load": None, "sparse": None, "last_only": False, "refined": None}
        values = {**of_a_pass, **others, "scale": scale, "pools": pools}
        before = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def scale_at(self, site: int, x: Tensor, of_last: bool = False) -> Tensor:
        """Scale f32[B, S] of the tokens of a site's input, refined from here on where there is an anticipation.

        Args:
            site: Index of the layer or product.
            x: T[B, S, D], or [B * S, D] as some families flatten it.
            of_last: Whether x is of each text's last token alone: S is 1.
        """

        def cut(of_tokens: Tensor) -> Tensor:
            # A slice for nothing would be a node of the graph.
            return of_tokens[:, -1:] if of_last else of_tokens

        if isinstance(self.scale, Tensor):
            given = cut(self.scale)
        else:
            tokens = x.shape[:-1] if x.ndim == 3 else (1, x.shape[0])
            given = torch.full(tokens, self.scale, dtype=torch.float32, device=x.device)
        for anticipation in self.anticipations:
            if anticipation.site == site and self.load is not None:
                self.refined = anticipation.refined(given, x.reshape(*given.shape, -1), cut(self.load))
        return given if self.refined is None else cut(self.refined)


# Function of a matrix's name and of what it is multiplied with, which may give something else for that.
Seen = Callable[[str, Tensor], Tensor]


def _unchanged(_matrix: str, inputs: Tensor) -> Tensor:
    return inputs


class SparseLayer(nn.Module):
    """Sparse feed-forward network: the op's weights, and the shared state that its other inputs come from.

    Args:
        op: The op that it calls.
        index: Index of the layer.
        weights: The op's weights by input name, in order.
        activation: The op's attribute.
        sparsity: The state.
        formats: The op's other attributes by name, in order: how its weights are quantised.
    """

    def __init__(
        self,
        op: Op,
        index: int,
        weights: dict[str, Tensor],
        activation: str,
        sparsity: Sparsity,
        formats: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.op, self.index, self.activation, self.sparsity = op, index, activation, sparsity
        self.formats = dict(formats)
        self.weight_names = list(weights)
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))

    @property
    def matrices(self) -> list[str]:
        """Names of the weight matrices: those that lead into the neurons, then the one that leads out."""
        return names_of(self.op, "matrix")

    @property
    def neurons(self) -> int:
        """Number of neurons, F."""
        return int(self.get_parameter(self.weight_names[0]).shape[0])

    @property
    def outward(self) -> Tensor:
        """T[F, D]: row i is what neuron i writes."""
        return self.get_parameter(self.matrices[-1])

    def activations(self, x: Tensor, seen: Seen = _unchanged) -> tuple[Tensor, Tensor]:
        """The activation a and what it is multiplied with, both T[..., F], for x T[..., D]; see `dense`."""
        *inward, _ = self.matrices
        z, *others = [functional.linear(seen(m, x), self.get_parameter(m), self._bias(m)) for m in inward]
        a = ACTIVATIONS[self.activation](z)
        return a, others[0] if others else torch.ones_like(a)

    def hidden(self, x: Tensor, seen: Seen = _unchanged) -> Tensor:
        """T[..., F], what all neurons give for x T[..., D]: what the outward matrix is multiplied with."""
        a, up = self.activations(x, seen)
        return a * up

    def dense(self, x: Tensor, seen: Seen = _unchanged) -> Tensor:
        """The output T[..., D] of all neurons for x T[..., D], differentiable.

        Args:
            x: The layer's input.
            seen: Function of a matrix's name and its input T[..., F] or T[..., D]; the result takes the input's place.
        """
        y = seen(self.matrices[-1], self.hidden(x, seen)) @ self.outward
        bias = self._bias(self.matrices[-1])
        return y if bias is None else y + bias

    def _bias(self, matrix: str) -> Tensor | None:
        name = bias_of(self.op, matrix)
        return None if name is None else self.get_parameter(name)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer for x [B, S, D], or [B * S, D] as some families flatten it."""
        shared = self.sparsity
        scale = shared.scale_at(self.index, x)
        tokens_first = x.reshape(scale.shape[0], -1, x.shape[-1])
        if shared.pools is None:
            pool = torch.ones(scale.shape[0], self.neurons, dtype=torch.bool, device=x.device)
        else:
            pool = shared.pools[self.index]
        weights = [self.get_parameter(name) for name in self.weight_names]
        y, shared.active[self.index], shared.score[self.index] = torch_op(self.op)(
            tokens_first,
            *weights,
            shared.thresholds[self.index],
            scale,
            pool,
            *self.formats.values(),
            self.activation,
        )
        if shared.compensation:
            sparse = scale > 0 if shared.sparse is None else shared.sparse
            y = y + sparse.unsqueeze(-1).to(y.dtype) * shared.compensation[self.index].to(y.dtype)
        return y.reshape(x.shape)


def family_of(model: nn.Module) -> Family:
    """Row of FAMILIES for a model.

    Raises:
        CladaError: The model's type is not in the table.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if model_type not in FAMILIES:
        raise CladaError(f"model type '{model_type}' is not supported; known are: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Decoder layers of the model, in order."""
    layers = model.get_submodule(family_of(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def sparse_layers(model: nn.Module) -> list[SparseLayer]:
    """Sparse feed-forward networks of a patched model, in order."""
    return [module for module in model.modules() if isinstance(module, SparseLayer)]


def _activation(model: Any, family: Family) -> str:
    name = str(getattr(model.config, family.activation))
    if name not in ACTIVATION_NAMES:
        raise CladaError(f"activation '{name}' has no sparse op; known are: {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def _weights(layer: nn.Module, family: Family) -> dict[str, Tensor]:
    """Weights of the op by input name, the down projection transposed to [F, D]."""
    weights: dict[str, Tensor] = {}
    outward = list(family.linears)[-1]
    for name, path in family.linears.items():
        linear = layer.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.data
        weights[name] = weight.t().contiguous() if name == outward else weight
        bias, bias_name = linear.bias, bias_of(family.op, name)
        if bias_name is not None:
            weights[bias_name] = weight.new_zeros(weight.shape[0]) if bias is None else bias.data
        elif bias is not None:
            raise CladaError(f"{path} has a bias, which {family.op.name} does not take")
    return weights


def replace(root: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at a path from another one."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def sparsify(model: nn.Module, thresholds: Sequence[Tensor] | None = None) -> Sparsity:
    """Replace a causal LM's feed-forward networks, in place, by sparse ones.

    One matrix of one layer is in memory twice at a time. The model computes densely until the returned state's
    `scale` is raised above 0.

    Args:
        model: A causal LM of one of FAMILIES.
        thresholds: f32[F] for each layer; zeros where not given.

    Returns:
        The state through which all layers are steered and read.

    Raises:
        CladaError: The family, its activation or a bias is not supported, the thresholds do not fit, or the
            model is sparse already.

    Example:
        >>> sparsity = sparsify(model, thresholds)
        >>> sparsity.scale = 1.0
        >>> logits = model(input_ids).logits
    """
    family = family_of(model)
    activation = _activation(model, family)
    layers = decoder_layers(model)
    if sparse_layers(model):
        raise CladaError("the model is sparse already")
    if thresholds is not None and len(thresholds) != len(layers):
        raise CladaError(f"got thresholds for {len(thresholds)} layers, the model has {len(layers)}")
    sparsity = Sparsity(thresholds=[], active=[torch.empty(0)] * len(layers), score=[torch.empty(0)] * len(layers))
    for index, layer in enumerate(layers):
        sparse = SparseLayer(family.op, index, _weights(layer, family), activation, sparsity)
        threshold = torch.zeros(sparse.neurons) if thresholds is None else thresholds[index]
        if threshold.shape != (sparse.neurons,) or threshold.dtype != torch.float32:
            raise CladaError(
                f"threshold of layer {index} is {threshold.dtype} {list(threshold.shape)}, "
                f"expected torch.float32 [{sparse.neurons}]"
            )
        sparsity.thresholds.append(threshold)
        for path in family.bypass:
            replace(layer, path, nn.Identity())
        replace(layer, family.site, sparse)
    return sparsity
