"""Compiles for one architecture with nvcc: the kernels, ONNX Runtime's custom ops, and TensorRT's plugins."""

import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from clada.contract.files import write
from clada.errors import CladaError

_KERNELS = "libclada_cuda.so"
# Where CUDA usually is.
INSTALLED = Path("/usr/local/cuda")
_CUSTOM_OPS = "libclada_onnxruntime_cuda.so"
_PROBE = "plugin_probe.cpp"
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
    """The CUDA compiler: on the path, of CUDA_HOME, or where CUDA is usually installed.

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


def _sources(kernels: Path) -> list[Path]:
    return sorted(path for path in (kernels / "cuda").iterdir() if path.suffix in (".cu", ".cpp"))


def kernels_command(nvcc: Path, root: Path, architecture: str, generated: Path, library: Path) -> list[str]:
    """What compiles the kernels of a checkout.

    Args:
        nvcc: The compiler.
        root: The checkout.
        architecture: As "sm_90"; machine code for this one alone.
        generated: Folder of op_table.h.
        library: What is written.
    """
    kernels = root / "plugins" / "kernels"
    number = architecture.removeprefix("sm_")
    return [
        *(str(nvcc), "-shared", "-std=c++17", "-O3", "-gencode", f"arch=compute_{number},code={architecture}"),
        *("-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror"),
        *("-I", str(kernels), "-I", str(kernels / "cuda"), "-I", str(generated), "-o", str(library)),
        *map(str, _sources(kernels)),
    ]


def write_op_table(root: Path, folder: Path) -> None:
    """Write the C++ side of the op records, op_table.h."""
    module = runpy.run_path(str(root / "plugins" / "kernels" / "op_table.py"))
    write(folder / "op_table.h", module["header"]().encode())


def compile_to(library: Path, command: Callable[[Path], list[str]], what: str) -> None:
    """Run a command that writes a library, which appears only where it is whole.

    Args:
        library: What is written.
        command: What writes it elsewhere.
        what: What it is made for, in words.

    Raises:
        CladaError: The command fails: its first complaint.
    """
    unfinished = library.with_suffix(".unfinished")
    result = subprocess.run(command(unfinished), capture_output=True, text=True, check=False)
    if result.returncode:
        unfinished.unlink(missing_ok=True)
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        complaint = next((line for line in lines if "error" in line or "fatal" in line), lines[0] if lines else "")
        raise CladaError(f"nvcc cannot compile {what}: {complaint.strip()}")
    unfinished.replace(library)


def build(root: Path, architecture: str, folder: Path) -> Path:
    """The library of kernels, compiled unless what is in the folder is newer than every source.

    Args:
        root: The checkout.
        architecture: As "sm_90".
        folder: Where it and what it needs are written.

    Raises:
        CladaError: There is no nvcc, or it fails: its first complaint.
    """
    nvcc = nvcc_path()
    kernels, library = root / "plugins" / "kernels", folder / architecture / _KERNELS
    records = [*(root / "clada" / "ops").glob("*.py"), kernels / "op_table.py"]
    newest = max(path.stat().st_mtime for path in [*kernels.glob("*.h"), *(kernels / "cuda").iterdir(), *records])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    write_op_table(root, folder)
    compile_to(
        library,
        lambda unfinished: kernels_command(nvcc, root, architecture, folder, unfinished),
        f"the kernels for {architecture}",
    )
    return library


def custom_ops_command(nvcc: Path, root: Path, kernels: Path, headers: Path, library: Path) -> list[str]:
    """What compiles the custom ops of a checkout.

    Args:
        nvcc: The compiler.
        root: The checkout.
        kernels: The library of kernels; op_table.h is in the folder above its own.
        headers: Folder of ONNX Runtime's headers.
        library: What is written, beside the kernels.
    """
    plugins = root / "plugins"
    # Their own folder first: headers here have the names of the CPU's.
    folders = [plugins / "onnxruntime" / "cuda", plugins / "onnxruntime", plugins / "kernels" / "cuda"]
    folders += [plugins / "kernels", kernels.parent.parent]
    sources = [plugins / "onnxruntime" / "cuda" / "custom_ops.cpp", plugins / "onnxruntime" / "shapes.cpp"]
    return [
        *(str(nvcc), "-shared", "-std=c++17", "-O2", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
        *(argument for folder in folders for argument in ("-I", str(folder))),
        *("-isystem", str(headers), *map(str, sources), "-L", str(kernels.parent)),
        *("-Xlinker", f"-l:{kernels.name}", "-Xlinker", "-rpath,$ORIGIN", "-o", str(library)),
    ]


def build_custom_ops(root: Path, kernels: Path, headers: Path) -> Path:
    """The library of custom ops, compiled anew beside the library of kernels.

    Args:
        root: The checkout.
        kernels: From `build`.
        headers: Folder of ONNX Runtime's headers.

    Raises:
        CladaError: nvcc fails: its first complaint.
    """
    library = kernels.with_name(_CUSTOM_OPS)
    nvcc = nvcc_path()
    compile_to(
        library,
        lambda unfinished: custom_ops_command(nvcc, root, kernels, headers, unfinished),
        "ONNX Runtime's custom ops",
    )
    return library


def tensorrt_headers() -> Path | None:
    """The folder that holds TensorRT's headers, TENSORRT_INCLUDE_DIR; None where it is not given.

    Raises:
        CladaError: It does not hold them.
    """
    folder = os.environ.get("TENSORRT_INCLUDE_DIR")
    if folder and not (Path(folder) / "NvInferRuntime.h").is_file():
        raise CladaError(f"TENSORRT_INCLUDE_DIR is {folder}, which holds no NvInferRuntime.h of TensorRT")
    return Path(folder) if folder else None


def _plugin_command(nvcc: Path, headers: Path, library: Path) -> list[str]:
    return [
        *(str(nvcc), "-shared", "-std=c++17", "-O2", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror"),
        *("-isystem", str(headers), "-o", str(library)),
    ]


def build_probe(root: Path, headers: Path, folder: Path) -> Path:
    """What calls a library of plugins as TensorRT does.

    Args:
        root: The checkout.
        headers: TensorRT's.
        folder: Where it is written.

    Raises:
        CladaError: There is no nvcc, or it fails: its first complaint.
    """
    nvcc = nvcc_path()
    source, library = root / "plugins" / "tensorrt" / _PROBE, folder / "libclada_plugin_probe.so"
    folder.mkdir(parents=True, exist_ok=True)
    compile_to(
        library, lambda output: [*_plugin_command(nvcc, headers, output), str(source), "-ldl"], "the plugins' probe"
    )
    return library


def _release(root: Path) -> str:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.*)"$', text, re.MULTILINE)
    return found[1] if found else ""


def build_plugins(root: Path, headers: Path, kernels: Path, generated: Path) -> Path:
    """The plugins, over a library of kernels beside which they are written.

    Args:
        root: The checkout.
        headers: TensorRT's.
        kernels: The kernels' library.
        generated: Folder of op_table.h.

    Raises:
        CladaError: There is no nvcc, or it fails: its first complaint.
    """
    plugins, sources, nvcc = root / "plugins" / "tensorrt", root / "plugins" / "kernels", nvcc_path()

    def command(output: Path) -> list[str]:
        return [
            *_plugin_command(nvcc, headers, output),
            *(f"-I{folder}" for folder in (sources, sources / "cuda", generated)),
            f'-DCLADA_VERSION="{_release(root)}"',
            *(str(path) for path in sorted(plugins.glob("*.cpp")) if path.name != _PROBE),
            *(f"-L{kernels.parent}", f"-l:{kernels.name}", "-ldl"),
            *("-Xlinker", "-rpath=$ORIGIN", "-Xlinker", "-z,defs"),
            *("-Xlinker", f"--version-script={plugins / 'entry_points.map'}"),
        ]

    library = kernels.with_name("libclada_trt.so")
    compile_to(library, command, "the TensorRT plugins")
    return library


def onnxruntime_headers(root: Path) -> Path | None:
    """The folder of ONNX Runtime's C++ headers: that of the environment, or where `make` puts them in a checkout."""
    folders = [Path(os.environ.get(_HEADERS_VARIABLE, "")), root / "build" / "onnxruntime"]
    return next((folder for folder in folders if (folder / _HEADER).is_file()), None)


def missing(root: Path) -> str:
    """What is not here of what a whole model needs, and how to get it; empty where all is."""
    packages = [package for name, package in _PACKAGES.items() if find_spec(name) is None]
    wants = [f"pip install {' '.join(packages)}"] if packages else []
    if onnxruntime_headers(root) is None:
        wants.append(f"set {_HEADERS_VARIABLE} to the headers of an ONNX Runtime release (the folder of {_HEADER})")
    return "; ".join(wants)
