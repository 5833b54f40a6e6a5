"""The libraries that the suite calls: built by CMake from a checkout for one architecture, or elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from clada.errors import CladaError

# The targets of CMake, each of one library.
KERNELS, CUSTOM_OPS, PLUGINS, PROBE = "clada_cuda", "clada_onnxruntime_cuda", "clada_trt", "clada_plugin_probe"
_NAMES = {
    KERNELS: "the CUDA kernels",
    CUSTOM_OPS: "ONNX Runtime's custom ops",
    PLUGINS: "the TensorRT plugins",
    PROBE: "the plugins' probe",
}
# The path of a target's library, which is up to date.
Libraries = Callable[[str], Path]
# Where CUDA usually is.
INSTALLED = Path("/usr/local/cuda")
# What a compiler complains of ("-Werror" is none), and else what CMake does, over several lines.
_COMPLAINTS = (
    re.compile(r"^.*\b(error|fatal)\b.*$", re.MULTILINE),
    re.compile(r"^CMake Error.*(\n  .*)*", re.MULTILINE),
)
# Import name and package: the runtime's, and what the exporter traces with.
_PACKAGES = {
    "onnxruntime": "onnxruntime-gpu",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "jinja2": "jinja2",
}
_HEADER = "onnxruntime_cxx_api.h"
_HEADERS_VARIABLE = "CLADA_ONNXRUNTIME_INCLUDE"


def nvcc_path() -> Path:
    """Path of the CUDA compiler: on the path, in CUDA_HOME, or where CUDA is usually installed.

    Raises:
        CladaError: There is none.
    """
    folders = [os.environ["CUDA_HOME"]] if "CUDA_HOME" in os.environ else []
    found = shutil.which("nvcc") or shutil.which(
        "nvcc", path=os.pathsep.join(f"{folder}/bin" for folder in [*folders, INSTALLED])
    )
    if found is None:
        raise CladaError(f"nvcc is not on the PATH, in CUDA_HOME or in {INSTALLED}; install CUDA's compiler")
    return Path(found)


def _program(name: str) -> str | None:
    """A program on the path, or beside this Python, where pip puts it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _cmake() -> str:
    found = _program("cmake")
    if found is None:
        raise CladaError(f"cmake is not on the PATH or beside {sys.executable}; install it (pip install cmake ninja)")
    return found


def _generator() -> list[str]:
    """Options for the program that CMake leaves the compiling to."""
    for name, generator in (("ninja", "Ninja"), ("make", "Unix Makefiles")):
        found = _program(name)
        if found:
            return ["-G", generator, f"-DCMAKE_MAKE_PROGRAM={found}"]
    raise CladaError("neither ninja nor make is on the PATH; install one of them (pip install ninja)")


def tensorrt_headers() -> Path | None:
    """The folder that holds TensorRT's headers, TENSORRT_INCLUDE_DIR; None where it is not given.

    Raises:
        CladaError: It does not hold them.
    """
    folder = os.environ.get("TENSORRT_INCLUDE_DIR")
    if folder and not (Path(folder) / "NvInferRuntime.h").is_file():
        raise CladaError(f"TENSORRT_INCLUDE_DIR is {folder}, which holds no NvInferRuntime.h of TensorRT")
    return Path(folder) if folder else None


def onnxruntime_headers(root: Path) -> Path | None:
    """The folder of ONNX Runtime's C++ headers: that of the environment, or where `make` puts them in a checkout."""
    folders = [Path(os.environ.get(_HEADERS_VARIABLE, "")), root / "build" / "onnxruntime"]
    return next((folder for folder in folders if (folder / _HEADER).is_file()), None)


def missing(root: Path | None) -> str:
    """Name what a whole model needs and this machine lacks, and how to get it; empty where nothing is missing.

    Args:
        root: The checkout that the custom ops are built from; None where they were built elsewhere.
    """
    packages = [package for name, package in _PACKAGES.items() if find_spec(name) is None]
    wants = [f"pip install {' '.join(packages)}"] if packages else []
    if root and onnxruntime_headers(root) is None:
        wants.append(f"set {_HEADERS_VARIABLE} to the headers of an ONNX Runtime release (the folder of {_HEADER})")
    return "; ".join(wants)


def _run(command: list[str], architecture: str, what: str) -> None:
    """Run CMake, which reads in every run what is to be built for CUDA.

    Raises:
        CladaError: It fails: its first complaint, or that of the compiler.
    """
    cuda = {
        "CLADA_CUDA": "1",
        "CLADA_CUDA_ARCHITECTURES": f"{architecture.removeprefix('sm_')}-real",
        "CUDACXX": str(nvcc_path()),
    }
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **cuda})
    if result.returncode:
        text = result.stdout + result.stderr
        found = [match[0] for pattern in _COMPLAINTS if (match := pattern.search(text))]
        complaint = " ".join((found[0] if found else text[-200:]).split())
        raise CladaError(f"CMake cannot build {what} for {architecture}: {complaint}")


def _build(folder: Path, architecture: str, target: str) -> Path:
    tree = ["--build", str(folder / "cmake"), "--parallel", str(os.cpu_count())]
    _run([_cmake(), *tree, "--target", target], architecture, _NAMES[target])
    return folder / f"lib{target}.so"


def built_here(root: Path, architecture: str, folder: Path) -> Libraries:
    """A function that builds the libraries of a checkout, each when it is needed, and anew where a source has changed.

    Args:
        root: The checkout.
        architecture: As "sm_90"; machine code for this one alone.
        folder: Where they are written; CMake's own files in its `cmake`.

    Raises:
        CladaError: There is no nvcc, no CMake, or nothing that it could build with; or TensorRT's headers are not where
            they are said to be.
    """
    tensorrt_headers()
    tree = folder / "cmake"
    command = [_cmake(), "-S", str(root), "-B", str(tree)]
    # A folder keeps the generator that it began with.
    if not (tree / "CMakeCache.txt").exists():
        command += _generator()
    options = {
        "CLADA_GPU_SUITE": "ON",
        "CLADA_ONNXRUNTIME_INCLUDE": str(onnxruntime_headers(root) or ""),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(folder),
        "Python_EXECUTABLE": sys.executable,
    }
    _run([*command, *(f"-D{name}={value}" for name, value in options.items())], architecture, _NAMES[KERNELS])
    return partial(_build, folder, architecture)


def built_elsewhere(folder: Path) -> Libraries:
    """A function that finds libraries that were built for this machine's card on another one.

    Args:
        folder: Where they are.
    """

    def library(target: str) -> Path:
        path = folder.resolve() / f"lib{target}.so"
        if not path.is_file():
            raise CladaError(f"{_NAMES[target]} were not built: there is no {path}")
        return path

    return library
