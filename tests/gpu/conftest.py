"""Fixtures of the GPU suite's tests: a checkout that nvcc compiles in seconds, as its kernels are one launch."""

import re
import shutil
from pathlib import Path

import pytest

from gpu_suite import build as gpu_build
from tests.conftest import ROOT

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None and not (gpu_build.INSTALLED / "bin" / "nvcc").exists(),
    reason="nvcc is not on the PATH, nor where CUDA is usually installed",
)
# Of the kernels' own, what is not compiled to any.
_KEPT = ("launchers.h", "c_interface.cpp", "cublas_products.cpp", "cublas_products.h")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """One that is not changed."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("plugins", "gpu_suite", "clada/ops"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "clada" / "errors.py", root / "clada")
    cuda = root / "plugins" / "kernels" / "cuda"
    text, count = re.subn(
        r"clada_kernels_cuda STATIC [^)]*",
        "clada_kernels_cuda STATIC cublas_products.cpp kernels.cu",
        (cuda / "CMakeLists.txt").read_text(),
    )
    assert count == 1
    for path in cuda.iterdir():
        if path.name not in _KEPT:
            path.unlink()
    (cuda / "CMakeLists.txt").write_text(text)
    (cuda / "nothing.cuh").write_text("__global__ void nothing() {}\n")
    # As the kernels name a header that the emulation has another of.
    (cuda / "kernels.cu").write_text("""
#include <nothing.cuh>
#include "launchers.h"
namespace clada::cuda {
size_t sparse_ffn_workspace(const SparseFfnCall&) { return 0; }
size_t sparse_linear_workspace(const SparseLinearCall&) { return 0; }
size_t load_signal_workspace(const LoadSignalCall&) { return 0; }
cudaError_t sparse_ffn(const SparseFfnCall&, void*, const Products*, cudaStream_t stream) {
  nothing<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}
cudaError_t sparse_linear(const SparseLinearCall&, void*, const Products*, cudaStream_t) { return cudaSuccess; }
cudaError_t load_signal(const LoadSignalCall&, void*, cudaStream_t) { return cudaSuccess; }
}  // namespace clada::cuda
""")
    return root
