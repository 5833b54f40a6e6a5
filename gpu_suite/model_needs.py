"""What timing a whole model needs beside torch and nvcc, and what of it is not here."""

import os
from importlib.util import find_spec
from pathlib import Path

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
_VARIABLE = "CLADA_ONNXRUNTIME_INCLUDE"


def headers(root: Path) -> Path | None:
    """The folder of ONNX Runtime's C++ headers: that of the environment, or where `make` puts them in a checkout."""
    folders = [Path(os.environ.get(_VARIABLE, "")), root / "build" / "onnxruntime"]
    return next((folder for folder in folders if (folder / _HEADER).is_file()), None)


def missing(root: Path) -> str:
    """What is not here of what a whole model needs, and how to get it; empty where all is."""
    packages = [package for name, package in _PACKAGES.items() if find_spec(name) is None]
    wants = [f"pip install {' '.join(packages)}"] if packages else []
    if headers(root) is None:
        wants.append(f"set {_VARIABLE} to the headers of an ONNX Runtime release (the folder of {_HEADER})")
    return "; ".join(wants)
