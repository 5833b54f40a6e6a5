"""Artifact that is timed: a session for each share of its bytes, and ONNX Runtime's dense graph of its weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clada.benchmark.contender import dense, ours
from clada.benchmark.dense_copy import dense_copy
from clada.benchmark.precisions import Blocks
from clada.contract.manifest import Manifest
from clada.contract.weight_bytes import weight_bytes
from clada.errors import CladaError
from clada.runtime import Session
from clada.runtime.find_model import find_model
from clada.runtime.models.ort_cpu import Execution
from clada.runtime.models.ort_cpu_in_place import InPlaceModel


@dataclass(frozen=True)
class OpenedArtifact:
    """Artifact with everything loaded.

    Args:
        path: Its ONNX file.
        precision: Of its weights, with how they were rounded where not to the nearest: "int4", "int4-gptq".
        sessions: For each share of the bytes; they share one loaded graph.
        dense: Session on ONNX Runtime's dense graph.
    """

    path: Path
    precision: str
    sessions: dict[float, Session]
    dense: Session

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.dense.manifest

    @property
    def dense_name(self) -> str:
        """Name of ONNX Runtime's dense graph of it, which holds weights in the type that it multiplies in."""
        return dense(self.precision if self.manifest.quantization else self.manifest.model.dtype)

    def name(self, share: float) -> str:
        """Name of it at a share of its bytes."""
        return ours(None if share == 1 else share, self.precision)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices that a token may read, their scales included."""
        return weight_bytes(self.manifest, self.manifest.quantization)

    @property
    def dense_bytes(self) -> int:
        """Bytes that ONNX Runtime's dense graph reads for a token."""
        model = self.manifest.model
        if self.manifest.quantization is not None:
            return self.weight_bytes
        return self.weight_bytes // model.weight_bytes * np.dtype(model.dtype).itemsize


def has_dense(artifact: OpenedArtifact, artifacts: Sequence[OpenedArtifact]) -> bool:
    """Whether an artifact's dense graph is to be measured: one of several that have the same is enough."""
    return artifact is next(one for one in artifacts if one.dense_name == artifact.dense_name)


def precision_of(manifest: Manifest) -> str:
    """Precision of an artifact's weights, see OpenedArtifact."""
    quantization = manifest.quantization
    if quantization is None:
        return manifest.model.weight_type
    method = "" if quantization.method == "rtn" else f"-{quantization.method}"
    return f"int{quantization.bits}{method}"


@contextmanager
def opened_artifact(path: Path, shares: Sequence[float], threads: int) -> Iterator[OpenedArtifact]:
    """Load an artifact; what was written for it is removed when the context ends.

    Args:
        path: Its ONNX file or folder.
        shares: Shares of its weights' bytes to read; 1 is dense.
        threads: Number of threads.

    Raises:
        CladaError: The artifact cannot be used, skips neurons, or was not measured at one of the shares.
    """
    file = find_model(path)
    sessions = {share: Session(file, threads=threads, bytes=share) for share in shares}
    first = next(iter(sessions.values()))
    if first.artifact.in_place_model is None:
        raise CladaError(f"{path} has no graph with an in-place cache, which is what is timed")
    # A share is an input of the graph.
    for session in sessions.values():
        session.models.take("single", first.models.of("single"))
    quantization = first.manifest.quantization
    blocks = None if quantization is None else Blocks(quantization.bits, quantization.block_size)
    with dense_copy(first.artifact.in_place_model, blocks) as graph:
        theirs = Session(file, threads=threads)
        theirs.models.take("single", InPlaceModel(graph, theirs.context_length, Execution(threads)))
        yield OpenedArtifact(file, precision_of(first.manifest), sessions, theirs)
