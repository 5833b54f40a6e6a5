"""ONNX Runtime sessions for the benchmark, all opened alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from clada.plugins.errors import CladaError
from clada.plugins.ops.record import Array
from clada.runtime.backends.onnxruntime import OnnxRuntimeModel


def _register(options: onnxruntime.SessionOptions, weights: str) -> None:
    """Have our kernels run our ops, their weights kept in the given type ("" is the model's own)."""
    try:
        from clada.plugins.onnxruntime import register  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        if weights:
            raise CladaError(f"weights in {weights} need the native library") from None
        return
    register(options, weights=weights)


def open_session(path: Path, threads: int, weights: str | None) -> onnxruntime.InferenceSession:
    """Open a graph; weights None leaves our kernels out.

    Raises:
        CladaError: The kernels are not there or do not take these weights.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        _register(options, weights)
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
    """Open a whole model's graph in the runtime's own decode loop; see `open_session`."""
    if weights:
        raise CladaError(f"weights in {weights} need the native library")
    return OnnxRuntimeModel(path, threads)
