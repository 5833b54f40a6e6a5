"""Public names of `import clada`."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import clada


@pytest.mark.parametrize("name", clada.__all__)
def test_every_name_leads_somewhere(name):
    assert getattr(clada, name) is not None
    assert name in dir(clada)


def test_another_name_is_said_to_be_missing():
    with pytest.raises(AttributeError, match="module 'clada' has no attribute 'Sesion'"):
        _ = clada.Sesion


def test_importing_clada_imports_nothing_else():
    """Neither torch nor ONNX Runtime, before something that needs them is used."""
    program = "import clada, sys; print([name for name in ('numpy', 'onnxruntime', 'torch') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_package_is_a_command():
    result = subprocess.run([sys.executable, "-m", "clada", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"clada {version('clada')}" == f"clada {clada.__version__}"
