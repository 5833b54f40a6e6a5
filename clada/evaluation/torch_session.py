"""Session of an artifact whose graph PyTorch computes with the checkpoint's own weights: its sparsity alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clada.contract.artifact import Artifact, open_artifact
from clada.exporter.from_artifact import make_sparse
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import cache_shapes
from clada.exporter.model.calibrated import Calibrated
from clada.ops import graph_names
from clada.runtime import Session
from clada.runtime.loading import Models, Opened
from clada.runtime.models.base import Array, Model


class TorchModel(Model):
    """A patched model in PyTorch, steered by the calibrated values of an exported graph.

    Args:
        model: A causal LM in float32, not patched yet.
        path: The ONNX file.
        artifact: Artifact of that file.
    """

    def __init__(self, model: Any, path: Path, artifact: Artifact) -> None:
        make_sparse(model, artifact, quantized=False)
        manifest, calibrated = artifact.manifest, Calibrated.from_graph(path)
        self._decoder, self._constants = Decoder(model, calibrated), calibrated.tensors()
        inputs: dict[str, tuple[Sequence[Any], type]] = {
            graph_names.PAST_LOGITS: ((None, model.config.vocab_size), np.float32)
        }
        if manifest.inputs is not None:
            inputs[graph_names.EFFORT] = ((None,), np.float32)
        for n, neurons in enumerate(manifest.model.neurons):
            inputs[graph_names.pool(n)] = ((None, neurons), np.bool_)
        for n, cache in enumerate(cache_shapes(model)):
            for name, width in zip(graph_names.past(n), (cache.key_width, cache.value_width), strict=True):
                inputs[name] = ((None, cache.heads, None, width), np.float32)
        super().__init__(inputs, "PyTorch")

    def empty_cache(self, texts: int) -> Any:
        """See Model."""
        return [torch.from_numpy(array) for array in self._no_tokens(texts)]

    def copy_cache(self, cache: Any) -> Any:
        """See Model."""
        return list(cache)

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """See Model."""
        names = (graph_names.INPUT_IDS, graph_names.ATTENTION_MASK, graph_names.POSITION_IDS, graph_names.PAST_LOGITS)
        logits, present, score, load, surprisal, entropy, active, read = self._decoder(
            **{name: torch.from_numpy(inputs[name]) for name in names},
            effort=[torch.from_numpy(inputs[graph_names.EFFORT])] if self.by_input else [],
            pools=[torch.from_numpy(inputs[graph_names.pool(n)]) for n in range(len(self.neurons))],
            past=list(zip(cache[::2], cache[1::2], strict=True)),
            **self._constants,
        )
        outputs = {
            graph_names.LOGITS: logits,
            graph_names.LOAD: load,
            graph_names.SURPRISAL: surprisal,
            graph_names.ENTROPY: entropy,
        }
        outputs |= {graph_names.READ: share for share in read}  # noqa: B035 - there is one, or none
        outputs |= {graph_names.ACTIVE: active} | {graph_names.score(n): of_layer for n, of_layer in enumerate(score)}
        return {name: outputs[name].numpy() for name in fetch}, present


class TorchSession(Session):
    """A session of an artifact that runs a model in PyTorch in the place of the graph.

    Args:
        path: The artifact's ONNX file.
        model: A causal LM in float32, not patched yet.
        bytes: See Session.
    """

    def __init__(self, path: Path, model: Any, bytes: float | None = None) -> None:
        artifact = open_artifact(path, check_weights=False)
        own = artifact.load_graph(path.name, lambda found: TorchModel(model, found, artifact))
        super().__init__(Opened(artifact, Models({"portable": lambda: own, "single": lambda: own})), bytes=bytes)
