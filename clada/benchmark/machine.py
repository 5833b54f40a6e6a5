"""Description of the machine that the figures were measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What decides which kernels run, of the flags a processor names.
_VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16", "i8mm")
_PACKAGES = ("clada", "onnxruntime", "torch", "numpy")


def host() -> dict[str, Any]:
    """Processor, cores and vector instructions, the system and Python."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in _VECTOR_FLAGS if flag in flags],
        "system": platform.system(),
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """Host, our kernels for it, and versions.

    Raises:
        CladaError: There are no native kernels to measure.
    """
    # Not above: a host is described too where there is no ONNX Runtime.
    from clada.plugins.onnxruntime import instructions

    return host() | {"kernels": instructions(), "versions": {name: version(name) for name in _PACKAGES}}
