"""Graph in ONNX Runtime: the ops run on our native kernels or as their function bodies."""

import ctypes
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clada.errors import CladaError
from clada.ops.devices import DEVICES, ORT_KERNELS, WEIGHTS, Device, HeldWeights, OrtKernels
from clada.plugins.onnxruntime import instructions as best_instructions
from clada.plugins.onnxruntime import register
from clada.runtime.models.base import Array, Model
from clada.runtime.models.external_data import check_external_data
from clada.runtime.models.ort_cuda_session import check_cuda, check_runs_on_cuda, cuda_providers
from clada.runtime.models.ort_errors import ONNXRUNTIME_ERRORS, memory_is_full, one_line_errors, reason_of
from clada.runtime.threads import check_threads

NUMPY_TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def older_than(release: str) -> bool:
    """Whether the installed ONNX Runtime is older than a release, given as "major.minor"."""

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")[:2]]

    return numbers(onnxruntime.__version__) < numbers(release)


BODIES = "function bodies"
# Of ONNX Runtime's logging.
_FATAL = 4


@dataclass(frozen=True)
class Execution:
    """Options by which ONNX Runtime runs a graph.

    Args:
        threads: Threads within an op, eight a processor at most; 0 lets ONNX Runtime choose.
        kernels: "native"; "bodies", the function bodies of the file itself; or "auto": native kernels, and the bodies,
            with a warning, where those cannot be had.
        weights: Type of the feed-forward weights in the native kernels: empty, as the model has them; "bfloat16", a
            float32 model's rounded when it is loaded, in half the memory.
        instructions: The instruction set of the native kernels; empty for the best that the processor has.
        element: The type of the model, by its name in the manifest; empty where it is not known. See `register`.
        device: "cpu" or "cuda".
        cuda_graph: Whether the decode steps of a text are captured in CUDA graphs and replayed.
        exact: Whether products with quantized weights are computed in floating point or, in the native kernels, with
            tokens in 16 bits, as verification wants them, and not with tokens rounded to 8 bits.
        spare_memory: Whether weights stay as the file has them, mapped: dequantized where a step needs them and never
            rearranged, so that function bodies need no memory of the size of the model, and more time.

    Raises:
        CladaError: A value is not one of these.
    """

    threads: int = 0
    kernels: OrtKernels = "auto"
    weights: HeldWeights = ""
    instructions: str = ""
    element: str = ""
    device: Device = "cpu"
    cuda_graph: bool = False
    exact: bool = False
    spare_memory: bool = False

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.kernels not in ORT_KERNELS:
            raise CladaError(f"kernels is '{self.kernels}'; it must be one of {', '.join(ORT_KERNELS)}")
        if self.weights not in WEIGHTS:
            raise CladaError(
                f"weights is '{self.weights}'; it must be empty or one of {', '.join(filter(None, WEIGHTS))}"
            )
        if self.weights and self.kernels == "bodies":
            raise CladaError(f"weights={self.weights} needs the native kernels; function bodies have none of their own")
        if self.device not in DEVICES:
            raise CladaError(f"device is '{self.device}'; it must be one of {', '.join(DEVICES)}")
        if self.device != "cpu":
            for name in ("weights", "instructions"):
                if getattr(self, name):
                    raise CladaError(f"{name}={getattr(self, name)} is for the CPU, and device is '{self.device}'")
        if self.cuda_graph and self.device != "cuda":
            raise CladaError(f"cuda_graph needs device='cuda', and device is '{self.device}'")


# Threads wait for the next op of a step without sleeping, which takes longer than many an op; between steps they sleep,
# and leave the cores to whatever else runs on the machine.
SPINNING = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}


def session_options(execution: Execution) -> Any:
    """Session options, without kernels."""
    options = onnxruntime.SessionOptions()
    # Its own lines, in color, beside ours, which have its reason; those of its start, as of a missing library, stay.
    options.log_severity_level = _FATAL
    # What was checked is an ONNX file, whatever its name.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.intra_op_num_threads = execution.threads
    for name, value in SPINNING.items():
        options.add_session_config_entry(name, value)
    # Of MatMulNBits, which ONNX Runtime makes of DequantizeLinear and MatMul: 4 is int8, 0 the tokens' own type.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0" if execution.exact else "4")
    if execution.spare_memory:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False  # it keeps what is freed
        options.enable_mem_pattern = False  # all that a step needs would be there from its start to its end
    return options


def _load(path: Path, options: Any, execution: Execution) -> Any:
    on_cuda = execution.device == "cuda"
    providers = cuda_providers(execution.cuda_graph) if on_cuda else ["CPUExecutionProvider"]
    try:
        # Its fallback would print to standard output and go on elsewhere than requested.
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=providers,
            enable_fallback=0,
            disabled_optimizers=["ConstantFolding"] if execution.spare_memory else [],
        )
    except ONNXRUNTIME_ERRORS as error:
        if on_cuda and memory_is_full(error):
            raise CladaError(
                f"the GPU's memory is too small for {path}: export a smaller model, or in float16"
            ) from error
        raise CladaError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason_of(error)}") from error
    if on_cuda:
        check_runs_on_cuda(session)
    _give_back_memory()
    return session


def _give_back_memory() -> None:
    """Return freed memory of the load to the system: the C library keeps it, as much as half of packed weights."""
    if sys.platform != "linux":  # elsewhere there may be no library of the process itself
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _load_native(path: Path, execution: Execution) -> Any:
    options = session_options(execution)
    register(
        options,
        device=execution.device,
        weights=execution.weights,
        instructions=execution.instructions,
        element=execution.element,
        exact=execution.exact,
    )
    return _load(path, options, execution)


def create_session(path: Path, execution: Execution) -> tuple[Any, str]:
    """Create a session of a graph.

    Returns:
        The session, and what runs the ops in it.

    Raises:
        CladaError: ONNX Runtime cannot load the file, not on the device or not with the kernels that were asked for; or
            the file has weights elsewhere than beside it.
    """
    check_external_data(path)
    place = ""
    if execution.device == "cuda":
        check_cuda()
        place = ", CUDA"
    if execution.kernels == "bodies":
        return _load(path, session_options(execution), execution), BODIES + place
    try:
        session = _load_native(path, execution)
        return session, f"native kernels{place or f', {execution.instructions or best_instructions()}'}"
    except CladaError as error:
        if execution.kernels == "native" or execution.weights:
            raise
        reason = error
    session = _load(path, session_options(execution), execution)
    # Only once it is known that the kernels, not the file, are at fault.
    warnings.warn(f"the function bodies run instead of the native kernels, at dense speed: {reason}", stacklevel=2)
    return session, BODIES + place


def kernels_here() -> str:
    """Kernels that run the ops on this machine by default."""
    try:
        register(onnxruntime.SessionOptions())
        return f"native kernels, {best_instructions()}"
    except CladaError as error:
        return f"{BODIES}: {error}"


class OnnxRuntimeModel(Model):
    """Loaded graph: its sizes, and one step of it, for any number of texts.

    Args:
        path: The ONNX file.
        execution: Options of ONNX Runtime.

    Raises:
        CladaError: ONNX Runtime cannot load the file, or not with the kernels that were asked for.
    """

    def __init__(self, path: Path, execution: Execution | None = None) -> None:
        self._session, kernels = create_session(path, execution or Execution())
        inputs = self._session.get_inputs()
        super().__init__({value.name: (value.shape, NUMPY_TYPES[value.type]) for value in inputs}, kernels)

    def empty_cache(self, texts: int) -> Any:
        """See Model."""
        return self.load_cache(self._no_tokens(texts))

    def load_cache(self, keys_values: Sequence[Array]) -> Any:
        """Create a cache that holds keys and values T[B, H, P, d], those of each layer in turn."""
        return [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in keys_values]

    def copy_cache(self, cache: Any) -> Any:
        """See Model."""
        return list(cache)

    def rewind_cache(self, cache: Any, tokens: int) -> Any:
        """See Model."""
        return self.load_cache([np.ascontiguousarray(value.numpy()[:, :, :tokens]) for value in cache])

    def read_cache(self, cache: Any) -> list[Array]:
        """Keys and values T[B, H, P, d] of a cache, those of each layer in turn."""
        return [value.numpy() for value in cache]

    def step(self, inputs: Mapping[str, Array], cache: Any, fetch: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """See Model."""
        feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        feeds |= dict(zip(self._past, cache, strict=True))
        with one_line_errors():
            values = self._session.run_with_ort_values([*fetch, *self._present], feeds)
        outputs = {name: value.numpy() for name, value in zip(fetch, values, strict=False)}
        return outputs, values[len(fetch) :]
