"""Weights in the type that they are kept in, widened each time they are used: a model of half or an eighth the size.

The results are those of the same weights in float32, to the bit: widening a float16 or bfloat16 is exact, and quantized
weights are what a model computes with from then on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from clada.ops import SPARSE_LINEAR, Op

_NO_FORMATS: Mapping[str, int] = MappingProxyType({})


class Held(Protocol):
    """Matrix as it is in memory."""

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of the matrix; they may be the ones in memory, if those are of that type."""


class HeldRows(Held, Protocol):
    """Matrix whose rows are what an op skips: what that op takes of it."""

    @property
    def op(self) -> Op:
        """The op."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name of the op's input; those in a floating-point type may be given in any."""

    @property
    def formats(self) -> Mapping[str, int]:
        """Attributes of the op, in order."""


@dataclass(frozen=True)
class HeldTensor:
    """Matrix that is held in a floating-point type."""

    tensor: Tensor
    op = SPARSE_LINEAR
    formats = _NO_FORMATS

    @property
    def tensors(self) -> dict[str, Tensor]:
        """See HeldRows."""
        return {"w": self.tensor}

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of the matrix; see Held."""
        return self.tensor.to(dtype)


class _Product(torch.autograd.Function):
    """x W^T + b, of whose W nothing wide is kept for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Held, bias: Tensor | None) -> Tensor:
        ctx.held = held
        return functional.linear(x, held.values(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.held.values(gradient.dtype), None, None


class HoldingModule(nn.Module):
    """Module whose weight is held; `hold` makes one of another."""

    held: Held

    @property
    def weight(self) -> Tensor:
        """The weight in float32, for reading."""
        return self.held.values()


class HeldLinear(HoldingModule, nn.Linear):  # type: ignore[override]
    """Linear layer whose weight T[N, D] is held."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer; differentiable in x alone."""
        y: Tensor = _Product.apply(x, self.held, self.bias)  # type: ignore[no-untyped-call]
        return y


class HeldEmbedding(HoldingModule, nn.Embedding):  # type: ignore[override]
    """Embedding whose table T[V, D] is held."""

    held: HeldTensor

    def forward(self, ids: Tensor) -> Tensor:
        """Embed tokens i64[B, S] to f32[B, S, D]."""
        return functional.embedding(ids, self.held.tensor).float()


def hold(module: nn.Linear | nn.Embedding, held: Held) -> None:
    """Make a linear layer or an embedding compute with a held weight from here on.

    It stays the object that it is: products, and the model, know it by that.
    """
    module._parameters.pop("weight", None)
    module.__class__ = HeldEmbedding if isinstance(module, nn.Embedding) else HeldLinear
    module.held = held  # type: ignore[assignment]


def release(linear: nn.Linear) -> None:
    """Let go of the weight of a layer that is not to compute any more, whoever still holds the layer."""
    if isinstance(linear, HoldingModule):
        del linear.held
    else:
        del linear.weight


def held_weight(module: nn.Linear | nn.Embedding) -> Held:
    """Weight of a layer in the type that it is in memory in."""
    if isinstance(module, HoldingModule):
        return module.held
    return HeldTensor(module.weight.data)


def named_weights(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Functions that give a model's weights, by name, as they would be were none of them held."""
    found: dict[str, Callable[[], Tensor]] = {
        name: tensor.detach for name, tensor in model.state_dict(keep_vars=True).items()
    }
    for name, module in model.named_modules():
        if isinstance(module, HoldingModule):
            found[f"{name}.weight"] = module.held.values
    return found


def hold_narrow(model: Any, narrow: nn.Module) -> None:
    """Give a model in float32, whose parameters are on the meta device, those of the same model in a narrower type.

    Of linear layers and of the input embedding they are held as they are, unless those compute in a way of their own;
    others are widened. The narrow model is of no use afterwards.
    """
    embedding = model.get_input_embeddings()
    linears = [module.weight for module in model.modules() if type(module) is nn.Linear]
    if {*model.parameters()} <= {embedding.weight, *linears}:
        embedding = None  # of a model without parameters transformers cannot tell the type
    kept: dict[int, HeldTensor] = {}

    def of(weight: Tensor) -> HeldTensor:
        # One object for weights that are tied.
        return kept.setdefault(id(weight), HeldTensor(weight.data))

    for name, module in list(model.named_modules()):
        other = narrow.get_submodule(name)
        if type(module) is nn.Linear or (module is embedding and type(module) is nn.Embedding):
            hold(module, of(other.weight))  # type: ignore[arg-type]
        for key in list(module._parameters):
            weight = other._parameters[key]
            module._parameters[key] = None if weight is None else nn.Parameter(weight.data.float())
        for key, buffer in module._buffers.items():
            # Those of the checkpoint; the others follow from the configuration, in float32 here.
            if buffer is not None and key not in module._non_persistent_buffers_set:
                stored = other._buffers[key]
                assert stored is not None
                module._buffers[key] = stored.to(buffer.dtype)
