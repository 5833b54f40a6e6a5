"""ONNX Runtime sessions of the benchmark: set up as the runtime does, with or without our kernels."""

from collections.abc import Mapping, Sequence

import onnxruntime

from clada.ops.devices import WEIGHTS
from clada.ops.record import Array
from clada.runtime.models.ort_cpu import Execution


def execution(threads: int, precision: str | None) -> Execution:
    """Execution of a graph: with our kernels, feed-forward weights in a precision, or without (None)."""
    if precision is None:
        return Execution(threads, "bodies")
    # All other precisions are the file's own.
    return Execution(threads, "native", precision if precision in WEIGHTS else "")


class Bound:
    """Session whose inputs are bound once, so that a run costs no more than the graph."""

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
        """Outputs of the last run."""
        return {name: value.numpy() for name, value in zip(self._names, self._binding.get_outputs(), strict=True)}
