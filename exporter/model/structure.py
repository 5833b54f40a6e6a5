"""Check of what a causal LM is made of: a dense decoder of any type can be exported, others are refused by name."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from clada.errors import CladaError
from clada.exporter.model.hooks import shown_inputs

# Modules whose weights a token reads by its own row (an embedding), or by products.
_KNOWN = (nn.Linear, nn.Embedding, Conv1D)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EXPERTS = re.compile("expert|router|moe", re.IGNORECASE)
_TOKENS = 4
# Largest difference of logits that rounding makes, as a share of their range, by the bytes of a model's numbers.
_ROUNDING = {4: 1e-3, 2: 5e-2}


def check_weights(model: nn.Module) -> None:
    """Check that all matrices of a model are linear layers or embeddings.

    Args:
        model: A causal LM; it may be without weights, on torch's meta device.

    Raises:
        CladaError: Some are not, such as those of experts or convolutions, or there is no output matrix.
    """
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if parameter.ndim < 2 or isinstance(owner, _KNOWN):
            continue
        if isinstance(owner, _CONVOLUTIONS):
            kind = "a convolution, as models of states, hybrid ones and those of images and sound have them"
        elif _EXPERTS.search(f"{name} {type(owner).__name__}"):
            kind = "of a mixture of experts"
        else:
            kind = f"of {type(owner).__name__}"
        raise CladaError(
            f"{name} {list(parameter.shape)} is {kind}, and no linear layer: only dense decoders can be exported"
        )
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(output, nn.Linear):
        raise CladaError(f"the model has no linear layer that gives its logits, but {type(output).__name__}")


def _logits(model: Any, ids: Tensor, cache: Any) -> Tensor:
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    difference, reach = (ours.float() - theirs.float()).abs().max(), theirs.float().max() - theirs.float().min()
    return bool(difference > _ROUNDING[theirs.element_size()] * reach)


def _faults(model: Any) -> Iterator[str]:
    ids = torch.arange(1, _TOKENS + 1)[None] % model.config.vocab_size
    cache: Any = DynamicCache()
    whole = _logits(model, ids, cache)
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    if _differ(_logits(model, other, DynamicCache())[:, :-1], whole[:, :-1]):
        yield "what it predicts depends on tokens that come later"
    kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    if not kept or any(
        not isinstance(tensor, Tensor) or tensor.ndim != 4 or tensor.shape[2] != _TOKENS
        for pair in kept
        for tensor in pair
    ):
        yield "what it keeps of a text is not keys and values of each token"
        return
    steps: Any = DynamicCache()
    _logits(model, ids[:, :-1], steps)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    tokens: dict[str, list[int]] = {}

    def note(place: int, x: Tensor) -> None:
        tokens.setdefault(names[place], []).append(x[..., 0].numel())

    with shown_inputs([model.get_submodule(name) for name in names], note):
        decoded = _logits(model, ids[:, -1:], steps)
    if _differ(decoded, whole[:, -1:]):
        yield "token by token it does not predict what it predicts for the whole text"
    for name, runs in tokens.items():
        if runs != [1]:
            yield f"to decode one token {name} is run {len(runs)} times, for {sum(runs)} tokens"
            return
    idle = [name for name in names if name not in tokens]
    if idle:
        yield f"{len(idle)} linear layers are not run by text alone, such as {idle[0]}"


@torch.no_grad()
def check_behavior(model: Any) -> None:
    """Check that a model is a decoder: it runs over text alone, reads no later token, and keeps keys and values.

    Args:
        model: A causal LM with its weights.

    Raises:
        CladaError: It is none.
    """
    kind = model.config.model_type
    try:
        faults = list(_faults(model))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CladaError(f"model type '{kind}' cannot be decoded with a cache of keys and values: {reason}") from error
    if faults:
        raise CladaError(f"model type '{kind}' is no dense decoder that can be exported: {'; '.join(faults)}")
