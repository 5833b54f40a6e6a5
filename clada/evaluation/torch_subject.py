"""Patched model in PyTorch that skips inputs of its feed-forward matrices, as the subject of an evaluation.

For rules that the ops do not carry out. What such a rule keeps depends on the token alone, so one pass with the prompt
dense computes what decode would, and no loop is needed. Attention stays dense.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.evaluation.scores import log_softmax
from clada.evaluation.subject import Reading, Subject, SubjectInfo
from clada.exporter.model.hooks import registered
from clada.exporter.model.patch import SparseLayer, sparse_layers
from clada.exporter.model.rope import context_length
from clada.exporter.model.steering import steered

# For each layer, by the name of a matrix: f32[inputs], the magnitude below which an input is skipped. A matrix that is
# not named is computed in full, and how much of it is read is not counted.
InputThresholds = Sequence[Mapping[str, Tensor]]


def forward_skipping(
    layer: SparseLayer, x: Tensor, thresholds: Mapping[str, Tensor], sparse: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a layer's output without the inputs that are below the thresholds.

    Args:
        layer: The layer.
        x: f32[..., D].
        thresholds: f32[inputs] by name of the matrix.
        sparse: bool[...], the tokens that skip.

    Returns:
        f32[..., D], and by name of the matrix i64[...], how many inputs were kept; zeros are not.
    """
    counts: dict[str, Tensor] = {}

    def kept(name: str, inputs: Tensor) -> Tensor:
        if name not in thresholds:
            return inputs
        mask = (inputs != 0) & ~(sparse.unsqueeze(-1) & (inputs.abs() < thresholds[name]))
        counts[name] = mask.sum(-1)
        return torch.where(mask, inputs, 0)

    return layer.dense(x, kept), counts


@contextmanager
def skipping(model: Any, thresholds: InputThresholds, sparse: Tensor) -> Iterator[list[dict[str, Tensor]]]:
    """Make a patched model, within the context, skip inputs below the thresholds.

    Args:
        model: A causal LM after `sparsify`.
        thresholds: For each layer.
        sparse: bool[B, S], the tokens that skip; the others are dense.

    Yields:
        For each layer, after a pass: by name of the matrix i64[B, S], how many inputs were kept.
    """
    layers = sparse_layers(model)
    counts: list[dict[str, Tensor]] = [{} for _ in layers]

    def hook(layer: Any, args: tuple[Tensor, ...], _dense: Tensor) -> Tensor:
        x = args[0]
        y, kept = forward_skipping(layer, x, thresholds[layer.index], sparse.reshape(x.shape[:-1]))
        counts[layer.index] = {name: count.reshape(sparse.shape) for name, count in kept.items()}
        return y

    with registered(layer.register_forward_hook(hook) for layer in layers), steered(model):
        yield counts


def read_shares(layers: Sequence[SparseLayer], thresholds: InputThresholds, counts: list[dict[str, Tensor]]) -> Tensor:
    """Share f32[B, S] of the feed-forward weights' bytes that were read, of the matrices that have thresholds."""
    shares = torch.zeros(next(iter(counts[0].values())).shape)
    neurons = sum(layer.neurons for layer in layers)
    for layer, of_layer, kept in zip(layers, thresholds, counts, strict=True):
        for name, count in kept.items():
            shares += count / of_layer[name].numel() * (layer.neurons / neurons / len(kept))
    return shares


def _info(model: Any, name: str, policy: dict[str, Any], calibration: dict[str, Any]) -> SubjectInfo:
    layers, config = sparse_layers(model), model.config
    matrices = [layer.get_parameter(matrix) for layer in layers for matrix in layer.matrices]
    return SubjectInfo(
        name=name,
        family=config.model_type,
        neurons=tuple(layer.neurons for layer in layers),
        parameters=model.num_parameters(),
        ffn_bytes=sum(matrix.numel() * matrix.element_size() for matrix in matrices),
        context_length=context_length(config),
        vocabulary=config.vocab_size,
        policy=policy,
        calibration=calibration,
    )


class TorchSubject(Subject):
    """Patched model that skips inputs of its feed-forward matrices.

    Its readings count a neuron as active if its row of the down projection is read. There is no load.

    Args:
        model: A causal LM after `sparsify`, in float32. Between readings it is as it was.
        thresholds: Thresholds of each layer, with those of the down projection.
        name: Name in tables.
        policy: Policy as recorded in a result.
        calibration: Calibration as recorded in a result.
    """

    def __init__(
        self,
        model: Any,
        thresholds: InputThresholds,
        name: str,
        policy: dict[str, Any],
        calibration: dict[str, Any],
    ) -> None:
        self.model, self.thresholds = model, thresholds
        self.layers = sparse_layers(model)
        self.info = _info(model, name, policy, calibration)

    @torch.no_grad()
    def read(self, row: Sequence[int], prompt_tokens: int) -> Reading:
        """See Subject."""
        ids = torch.tensor([list(row[:-1])])
        sparse = (torch.arange(ids.shape[1]) >= prompt_tokens)[None]
        with skipping(self.model, self.thresholds, sparse) as counts:
            logits = self.model(input_ids=ids, use_cache=False).logits[0].float().numpy()
        shares = read_shares(self.layers, self.thresholds, counts)[0, prompt_tokens:]
        active = [kept[layer.matrices[-1]][0] for layer, kept in zip(self.layers, counts, strict=True)]
        # Of each token that is read in decode, under the logits before it.
        log_p = log_softmax(logits[prompt_tokens - 1 : -1])
        tokens = np.array(row[prompt_tokens:-1])
        return Reading(
            logits=logits[prompt_tokens:],
            load=np.zeros(len(tokens), np.float32),
            surprisal=-log_p[np.arange(len(tokens)), tokens].astype(np.float32),
            entropy=-(np.exp(log_p) * log_p).sum(axis=-1).astype(np.float32),
            read_fraction=shares.numpy(),
            active=torch.stack(active, -1)[prompt_tokens:].int().numpy(),
            pool=np.tile(np.array(self.info.neurons, np.int32), (len(tokens), 1)),
        )
