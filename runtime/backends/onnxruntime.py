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
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntimeModel:
    """A loaded graph: its sizes, and one step of it.

    Args:
        path: The ONNX file.
        threads: Threads within an op; 0 lets ONNX Runtime choose.

    Raises:
        CladaError: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning threads take the cores from whatever else runs on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            first = str(error).splitlines()[0]
            raise CladaError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {first}") from error
        inputs = {value.name: value for value in self._session.get_inputs()}
        self.layers = sum(name.startswith(graph.pool(0).rstrip("0")) for name in inputs)
        self.neurons = [int(inputs[graph.pool(n)].shape[1]) for n in range(self.layers)]
        logits = inputs[graph.PAST_LOGITS]
        self.vocabulary = int(logits.shape[1])
        self.dtype = np.dtype(_NUMPY_TYPES[logits.type])
        self._cache_widths = [
            [(int(inputs[name].shape[1]), int(inputs[name].shape[3])) for name in graph.past(n)]
            for n in range(self.layers)
        ]

    def empty_cache(self, batch: int) -> list[Any]:
        """Keys and values of no tokens, for each layer in turn."""
        return [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, width), self.dtype))
            for layer in self._cache_widths
            for heads, width in layer
        ]

    def step(
        self,
        inputs: Mapping[str, npt.NDArray[Any]],
        cache: Sequence[Any],
        fetch: Sequence[str],
    ) -> tuple[dict[str, npt.NDArray[Any]], list[Any]]:
        """Run the graph once.

        Args:
            inputs: Every input but the cache, by name.
            cache: From `empty_cache` or the step before.
            fetch: Names of the outputs wanted.

        Returns:
            Those outputs, and the cache for the next step.
        """
        past = [name for n in range(self.layers) for name in graph.past(n)]
        present = [name for n in range(self.layers) for name in graph.present(n)]
        feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        feeds |= dict(zip(past, cache, strict=True))
        values = self._session.run_with_ort_values([*fetch, *present], feeds)
        outputs = {name: value.numpy() for name, value in zip(fetch, values, strict=False)}
        return outputs, values[len(fetch) :]
