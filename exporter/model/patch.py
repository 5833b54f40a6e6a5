"""Replacement of a causal LM's feed-forward networks, in place, by modules that skip neurons."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clada.errors import CladaError
from clada.exporter.model.families import Family, activation_of, family_of
from clada.exporter.model.steering import CurrentPass, SteeredModule
from clada.ops.record import Op, bias_of, names_of
from clada.ops.torch import ACTIVATIONS, torch_op

# Function of a matrix's name and of what it is multiplied with, which may give something else for that.
Seen = Callable[[str, Tensor], Tensor]


def _unchanged(_matrix: str, inputs: Tensor) -> Tensor:
    return inputs


class SparseLayer(SteeredModule):
    """One feed-forward network: the op's weights, and the pass that its other inputs come from.

    Args:
        op: The op that it calls.
        index: Index of the layer.
        weights: The op's weights by input name, in order.
        activation: The op's attribute.
        current: The pass of the model that it is in.
        formats: The op's other attributes by name, in order: how its weights are quantized.
    """

    def __init__(
        self,
        op: Op,
        index: int,
        weights: dict[str, Tensor],
        activation: str,
        current: CurrentPass,
        formats: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__(current)
        self.op, self.index, self.activation = op, index, activation
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
        steering, trace = self.current.steering, self.current.trace
        scale = self.current.scale_at(self.index, x)
        tokens_first = x.reshape(scale.shape[0], -1, x.shape[-1])
        if steering.pools is None:
            pool = torch.ones(scale.shape[0], self.neurons, dtype=torch.bool, device=x.device)
        else:
            pool = steering.pools[self.index]
        weights = [self.get_parameter(name) for name in self.weight_names]
        y, trace.active[self.index], trace.score[self.index] = torch_op(self.op)(
            tokens_first,
            *weights,
            self.current.threshold(self.index, self.neurons, x.device),
            scale,
            pool,
            *self.formats.values(),
            self.activation,
        )
        compensation = steering.settings.compensation
        if compensation:
            sparse = scale > 0 if steering.sparse is None else steering.sparse
            y = y + sparse.unsqueeze(-1).to(y.dtype) * compensation[self.index].to(y.dtype)
        return y.reshape(x.shape)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Decoder layers of the model, in order."""
    layers = model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def sparse_layers(model: nn.Module) -> list[SparseLayer]:
    """Sparse feed-forward networks of a patched model, in order."""
    return [module for module in model.modules() if isinstance(module, SparseLayer)]


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


def sparsify(model: Any) -> None:
    """Replace a causal LM's feed-forward networks, in place, by sparse ones.

    One matrix of one layer is in memory twice at a time. The model computes densely but where it is `steered`.

    Args:
        model: A causal LM of one of FAMILIES.

    Raises:
        CladaError: The family, its activation or a bias is not supported, or the model is sparse already.

    Example:
        >>> sparsify(model)
        >>> with steered(model, Steering(SiteSettings(thresholds), scale=1.0)) as trace:
        ...     logits = model(input_ids).logits
    """
    family, activation = family_of(model.config), activation_of(model.config)
    layers = decoder_layers(model)
    if sparse_layers(model):
        raise CladaError("the model is sparse already")
    current = CurrentPass()
    for index, layer in enumerate(layers):
        sparse = SparseLayer(family.op, index, _weights(layer, family), activation, current)
        for path in family.bypass:
            replace(layer, path, nn.Identity())
        replace(layer, family.site, sparse)
