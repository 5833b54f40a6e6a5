"""Opening of an artifact, or an engine of one, whose graphs are loaded when they are first needed."""

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from clada.contract.artifact import Artifact, in_place_name, open_artifact, open_artifact_of_engine
from clada.contract.engine_record import ENGINE_SUFFIX, read_record
from clada.errors import CladaError
from clada.ops.devices import Device, HeldWeights, OrtKernels
from clada.runtime.models.base import Model
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel, older_than
from clada.runtime.models.ort_cpu_in_place import InPlaceModel
from clada.runtime.models.ort_cuda import DeviceModel
from clada.runtime.models.ort_cuda_in_place import DeviceInPlaceModel
from clada.runtime.models.ort_cuda_session import check_cuda
from clada.runtime.models.resident import ResidentModel
from clada.runtime.trt.load import load_engine

# The type that ONNX Runtime's GroupQueryAttention computes in on a GPU.
IN_PLACE_CUDA_TYPES = ("float16",)
_NEEDS_HALF = "its attention knows float16 there, and the artifact is of another type; export with --dtype float16"

# The graph for any number of texts, and the one for a single text.
Kind = Literal["portable", "single"]


class Models:
    """Graphs of an artifact, each loaded by whichever thread first needs it.

    Args:
        loaders: Loads the graph of each kind; None from "single" stands for the portable one.
    """

    def __init__(self, loaders: Mapping[Kind, Callable[[], Model | None]]) -> None:
        self._loaders = loaders
        self._loaded: dict[Kind, Model] = {}
        self._unusable = ""
        # functools' cached_property has a lock of its own in some releases of Python, which would stay locked in a
        # forked process.
        self._lock = threading.RLock()
        _MODELS.add(self)

    def of(self, kind: Kind) -> Model:
        """Return the graph of a kind.

        Raises:
            CladaError: They were closed, or the graph cannot be loaded.
        """
        with self._lock:
            self.check_open()
            if kind not in self._loaded:
                self._loaded[kind] = self._loaders[kind]() or self.of("portable")
            return self._loaded[kind]

    def take(self, kind: Kind, model: Model) -> None:
        """Use a loaded graph in the place of the artifact's own of a kind."""
        self._loaded[kind] = model

    def close(self) -> None:
        """Release the graphs, and with them their memory, once no State holds one."""
        self._unusable = "the session is closed: make another"
        self._loaded.clear()

    def check_open(self) -> None:
        """Raise CladaError once the graphs are closed."""
        if self._unusable:
            raise CladaError(self._unusable)

    def _begin_in_child(self) -> None:
        """Start anew after fork(): the graphs' threads are in the parent, and one of those may hold a lock."""
        self._lock = threading.RLock()
        if any(isinstance(model, ResidentModel) for model in self._loaded.values()):
            self._unusable = self._unusable or (
                "the session was made before fork(), and what is on a GPU is the parent's: make a session in the child"
            )
            return
        stay = {kind: model for kind, model in self._loaded.items() if not isinstance(model, OnnxRuntimeModel)}
        self._loaded = stay


_MODELS: "weakref.WeakSet[Models]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for models in list(_MODELS):
        models._begin_in_child()


if hasattr(os, "register_at_fork"):  # where there is fork()
    os.register_at_fork(after_in_child=_begin_in_child)


@dataclass(frozen=True)
class Opened:
    """Artifact that can be run.

    Args:
        artifact: Its files.
        models: Its graphs.
        capacity: Tokens that an engine has room for, padding included; None where the model's context is the limit.
        one_text: Whether decode is captured in CUDA graphs, which are for one text at a time.
    """

    artifact: Artifact
    models: Models
    capacity: int | None = None
    one_text: bool = False


def open_model(
    path: Path, threads: int, kernels: OrtKernels, weights: HeldWeights, device: Device | None, cuda_graph: bool
) -> Opened:
    """Open an artifact, or an engine of one; for its arguments and errors see Session."""
    if path.suffix == ENGINE_SUFFIX:
        given = {"threads": threads, "kernels": kernels, "weights": weights, "cuda_graph": cuda_graph}
        _refuse_options(path, given | {"device": device})
        return _open_engine(path)
    execution = Execution(threads, kernels, weights, device=device or "cpu", cuda_graph=cuda_graph)
    if execution.device == "cuda":
        check_cuda()
    artifact = open_artifact(path, check_weights=False)
    if execution.device != "cpu":
        artifact.check_for_gpu()
    if execution.weights and artifact.quantization is not None:
        raise CladaError(
            f"weights={execution.weights} is for weights in float32, and those of {path} are quantized to "
            f"{artifact.quantization.bits} bits: leave it out"
        )
    execution = replace(execution, element=artifact.manifest.model.dtype)
    if execution.cuda_graph:
        _check_can_be_captured(artifact)

    def portable() -> Model:
        kind: type[OnnxRuntimeModel | DeviceModel] = OnnxRuntimeModel if execution.device == "cpu" else DeviceModel
        return artifact.load_graph(artifact.model.name, lambda file: kind(file, execution))

    models = Models({"portable": portable, "single": lambda: _single(artifact, execution)})
    return Opened(artifact, models, one_text=execution.cuda_graph)


def _open_engine(path: Path) -> Opened:
    record = read_record(path)
    artifact = open_artifact_of_engine(path)
    engine = load_engine(path, record)
    return Opened(artifact, Models({"portable": lambda: engine, "single": lambda: engine}), record.capacity)


def _single(artifact: Artifact, execution: Execution) -> Model | None:
    """Load the graph for one text, where there is one that runs here."""
    if artifact.manifest.in_place_cache is None:
        return None
    name, needed = in_place_name(artifact.model), artifact.in_place_needs
    if older_than(needed):
        warnings.warn(f"{name} needs ONNX Runtime {needed}; running the portable graph instead", stacklevel=2)
        return None
    capacity = artifact.manifest.model.context_length
    if execution.device == "cpu":
        return artifact.load_graph(name, lambda path: InPlaceModel(path, capacity, execution))
    if artifact.manifest.model.dtype not in IN_PLACE_CUDA_TYPES:
        warnings.warn(f"{name} would not run on the GPU: {_NEEDS_HALF}; running the portable graph", stacklevel=2)
        return None
    captured = execution.cuda_graph
    return artifact.load_graph(name, lambda path: DeviceInPlaceModel(path, capacity, execution, captured))


def _refuse_options(engine: Path, given: dict[str, Any]) -> None:
    """Raise CladaError where an option of ONNX Runtime is set, as an engine does not use it."""
    usual = {field.name: field.default for field in fields(Execution)} | {"device": None}
    for name, value in given.items():
        if value != usual[name]:
            raise CladaError(
                f"{name} is {value!r}, which is for ONNX graphs, and {engine} runs on the GPU it was built for: leave "
                "it out"
            )


def _check_can_be_captured(artifact: Artifact) -> None:
    """Raise CladaError for an artifact whose decode steps no CUDA graph can hold."""
    reason = ""
    if artifact.in_place_model is None:
        reason = "it has no graph with an in-place cache"
    elif older_than(artifact.in_place_needs):
        reason = f"its graph with an in-place cache needs ONNX Runtime {artifact.in_place_needs}"
    elif not artifact.in_place_fixed_shapes:
        reason = "it was exported by an older release of clada; export it again"
    elif artifact.manifest.model.dtype not in IN_PLACE_CUDA_TYPES:
        reason = _NEEDS_HALF
    if reason:
        raise CladaError(f"{artifact.model} cannot be captured in a CUDA graph: {reason}")
