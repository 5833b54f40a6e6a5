"""ONNX Runtime sessions for the benchmark, all opened alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from clada.benchmark.shapes import MAXIMUM_CONTEXT
from clada.plugins.onnxruntime import register
from clada.plugins.ops.record import Array
from clada.runtime.backends.in_place import InPlaceModel
from clada.runtime.backends.onnxruntime import OnnxRuntimeModel


def open_session(path: Path, threads: int, weights: str | None) -> onnxruntime.InferenceSession:
    """Open a graph.

    Args:
        path: Its file.
        threads: How many.
        weights: What our kernels hold the neurons' weights in, "" for what they are; None leaves the kernels out.

    Raises:
        CladaError: The kernels cannot be used.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        register(options, weights=weights)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Bound:
    """A session whose inputs are set once, so that a run costs no more than the graph."""

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> None:
        self._session, self._binding, self._names = session, session.io_binding(), list(outputs)
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name in outputs:
            self._binding.bind_output(name, "cpu")

    def run(self) -> None:
        """Run the graph once."""
        self._session.run_with_iobinding(self._binding)

    def results(self) -> dict[str, Array]:
        """What the last run put out."""
        return {name: value.numpy() for name, value in zip(self._names, self._binding.get_outputs(), strict=True)}


def open_model(path: Path, threads: int, weights: str | None) -> OnnxRuntimeModel:
    """Open a whole model's graph in the runtime's own decode loop; arguments as of `open_session`."""
    model = InPlaceModel(path, MAXIMUM_CONTEXT, threads)
    if weights is not None:
        model._session = open_session(path, threads, weights)  # the runtime takes no kernels yet
    return model
