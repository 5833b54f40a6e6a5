"""Compiles the CUDA kernels with nvcc alone, for one architecture, into one library."""

import os
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from clada.contract.files import write
from clada.errors import CladaError

_LIBRARY = "libclada_cuda.so"
# Where CUDA usually is.
INSTALLED = Path("/usr/local/cuda")


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


def compile_command(nvcc: Path, root: Path, architecture: str, generated: Path, library: Path) -> list[str]:
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
    kernels, library = root / "plugins" / "kernels", folder / architecture / _LIBRARY
    records = [*(root / "clada" / "ops").glob("*.py"), kernels / "op_table.py"]
    newest = max(path.stat().st_mtime for path in [*kernels.glob("*.h"), *(kernels / "cuda").iterdir(), *records])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    write_op_table(root, folder)
    compile_to(
        library,
        lambda unfinished: compile_command(nvcc, root, architecture, folder, unfinished),
        f"the kernels for {architecture}",
    )
    return library
