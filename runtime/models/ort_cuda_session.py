"""ONNX Runtime on an NVIDIA GPU: check that it can run, and its providers."""

import sys
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import onnxruntime

from clada.errors import CladaError
from clada.plugins.onnxruntime import CUDA_PROVIDER, check_provider
from clada.runtime.models.cuda_driver import why_no_gpu

# Of a run: the CUDA graph that it is to be captured in or replayed from; ONNX Runtime captures none for -1.
GRAPH_ID = "gpu_graph_id"
NO_GRAPH = -1


def check_cuda() -> None:
    """Raise CladaError where ONNX Runtime cannot run on a GPU of this machine."""
    check_provider()
    reason = why_no_gpu()
    if reason:
        raise CladaError(f"no CUDA device: {reason}")
    _load_libraries()


@cache
def _load_libraries() -> None:
    """Load CUDA's libraries that pip installed: they lie where no loader looks."""
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find, and standard output is for the text that is generated.
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def cuda_providers(cuda_graph: bool) -> list[Any]:
    """Execution providers of a session on a GPU; the CPU's computes shapes."""
    return [(CUDA_PROVIDER, {"enable_cuda_graph": "1" if cuda_graph else "0"}), "CPUExecutionProvider"]


def check_runs_on_cuda(session: Any) -> None:
    """Raise CladaError for a session that fell back to the CPU, which ONNX Runtime does with a warning."""
    if CUDA_PROVIDER not in session.get_providers():
        raise CladaError(
            f"onnxruntime {onnxruntime.__version__} cannot use CUDA and would run on the CPU: its warning above says "
            "which library it lacks; pip install 'onnxruntime-gpu[cuda,cudnn]', or CUDA and cuDNN from the system"
        )
