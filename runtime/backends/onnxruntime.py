"""The graph in ONNX Runtime, on the CPU; the ops run as their function bodies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from clada.plugins import graph
from clada.plugins.errors import CladaError

_LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}

Array = npt.NDArray[Any]


def older_than(release: str) -> bool:
    """Whether the ONNX Runtime that runs is older than a release, given as "major.minor"."""

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")[:2]]

    return numbers(onnxruntime.__version__) < numbers(release)


def create_session(path: Path, threads: int) -> Any:
    """Load a graph.

    Raises:
        CladaError: ONNX Runtime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads take the cores from whatever else runs on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _LOAD_ERRORS as error:
        first = str(error).splitlines()[0]
        raise CladaError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {first}") from error


class OnnxRuntimeModel:
    """A loaded graph: its sizes, and one step of it, for any number of texts.

    Args:
        path: The ONNX file.
        threads: Threads within an op; 0 lets ONNX Runtime choose.

    Raises:
        CladaError: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        self._session = create_session(path, threads)
        inputs = {value.name: value for value in self._session.get_inputs()}
        self.layers = sum(name.startswith(graph.pool(0).rstrip("0")) for name in inputs)
        self.neurons = [int(inputs[graph.pool(n)].shape[1]) for n in range(self.layers)]
        logits = inputs[graph.PAST_LOGITS]
        self.vocabulary = int(logits.shape[1])
        self.dtype = np.dtype(NUMPY_TYPES[logits.type])
        self._past = [name for n in range(self.layers) for name in graph.past(n)]
        self._present = [name for n in range(self.layers) for name in graph.present(n)]
        self._cache_sizes = [(int(inputs[name].shape[1]), int(inputs[name].shape[3])) for name in self._past]

    def empty_cache(self, texts: int) -> Any:
        """A cache of no tokens."""
        return self.load_cache([np.zeros((texts, heads, 0, width), self.dtype) for heads, width in self._cache_sizes])

    def load_cache(self, keys_values: Sequence[Array]) -> Any:
        """A cache that holds keys and values T[B, H, P, d], those of each layer in turn."""
        return [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in keys_values]

    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Array], Any]:
        """Run the graph once.

        Args:
            inputs: Every input but the cache, by name.
            cache: From `empty_cache`, `load_cache` or the step before.
            fetch: Names of the outputs wanted.

        Returns:
            Those outputs, and the cache for the next step.
        """
        feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        feeds |= dict(zip(self._past, cache, strict=True))
        values = self._session.run_with_ort_values([*fetch, *self._present], feeds)
        outputs = {name: value.numpy() for name, value in zip(fetch, values, strict=False)}
        return outputs, values[len(fetch) :]
