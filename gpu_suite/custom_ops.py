"""Compiles ONNX Runtime's custom ops for CUDA with nvcc alone, over the library of kernels that is built already."""

from pathlib import Path

from gpu_suite.build import compile_to, nvcc_path

_LIBRARY = "libclada_onnxruntime_cuda.so"


def compile_command(nvcc: Path, root: Path, kernels: Path, headers: Path, library: Path) -> list[str]:
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
    library = kernels.with_name(_LIBRARY)
    nvcc = nvcc_path()
    compile_to(
        library,
        lambda unfinished: compile_command(nvcc, root, kernels, headers, unfinished),
        "ONNX Runtime's custom ops",
    )
    return library
