"""Compiles the TensorRT plugins over the kernels, and what calls them, with nvcc and TensorRT's headers."""

import os
import re
from pathlib import Path

from clada.errors import CladaError
from gpu_suite.build import compile_to, nvcc_path

_PROBE = "plugin_probe.cpp"


def tensorrt_headers() -> Path | None:
    """The folder that holds TensorRT's headers, TENSORRT_INCLUDE_DIR; None where it is not given.

    Raises:
        CladaError: It does not hold them.
    """
    folder = os.environ.get("TENSORRT_INCLUDE_DIR")
    if folder and not (Path(folder) / "NvInferRuntime.h").is_file():
        raise CladaError(f"TENSORRT_INCLUDE_DIR is {folder}, which holds no NvInferRuntime.h of TensorRT")
    return Path(folder) if folder else None


def _command(nvcc: Path, headers: Path, library: Path) -> list[str]:
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
    source, library, nvcc = root / "plugins" / "tensorrt" / _PROBE, folder / "libclada_plugin_probe.so", nvcc_path()
    folder.mkdir(parents=True, exist_ok=True)
    compile_to(library, lambda output: [*_command(nvcc, headers, output), str(source), "-ldl"], "the plugins' probe")
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
            *_command(nvcc, headers, output),
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
