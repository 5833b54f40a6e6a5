"""GPU suite in one command: builds the kernels for this machine's GPU, checks them, times them, and writes the results.

It needs Python, torch with CUDA, NumPy, nvcc, CMake with ninja or make, and this checkout, of which nothing has to be
installed. Whole models need onnxruntime-gpu, ONNX Runtime's headers and what the exporter needs besides: what of it is
missing is said.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


# This checkout's clada, whatever is installed.
sys.path.insert(0, str(ROOT))


def main() -> int:
    for name in ("numpy", "torch"):
        if find_spec(name) is None:
            print(f"error: {name} is not installed for {sys.executable}; install it, torch with CUDA", file=sys.stderr)
            return 1
    from clada.command_line import exit_code
    from gpu_suite.suite import main as suite

    return exit_code(lambda: suite(ROOT))


if __name__ == "__main__":
    sys.exit(main())
