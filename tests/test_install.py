"""The wheel as a user installs it: on a clean interpreter, without torch."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

BLOCKED = ("torch", "transformers", "onnx", "onnxscript")


def check_output(*args: object, **options: object) -> str:
    result = subprocess.run([str(a) for a in args], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    check_output(*pip, "--wheel-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """An interpreter in which only the wheel and what it requires are installed."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    check_output(*install, wheel)
    return python


def test_wheel_holds_only_clada(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"clada", "clada-0.1.0.dist-info"}
    packages = {name.split("/")[1] for name in names if name.startswith("clada/")}
    assert packages == {"benchmark", "evaluation", "exporter", "plugins", "runtime"}
    for package in packages:
        assert f"clada/{package}/py.typed" in names
    assert {"clada/exporter/data/calibration.jsonl", "clada/exporter/data/LICENSE-PSF.txt"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "clada/plugins/onnxruntime/libclada_onnxruntime.so" in names
    assert ("clada/plugins/onnxruntime/libclada_onnxruntime_cuda.so" in names) == (shutil.which("nvcc") is not None)
    sources = (".cpp", ".h", ".cu", ".cuh", ".map", ".a", "CMakeLists.txt", "op_table.py")
    assert not [name for name in names if name.endswith(sources)]


def test_runtime_needs_no_torch(clean_python, tiny_artefact):
    """The artefact generates where none of the exporter's libraries is installed."""
    program = (
        "import importlib.util, sys\n"
        "from clada.runtime import GenerationConfig, Session\n"
        f"present = [n for n in {BLOCKED!r} if importlib.util.find_spec(n)]\n"
        f"text = Session({str(tiny_artefact)!r}).generate('def f(', GenerationConfig(max_new_tokens=4))[0]\n"
        "print(present, len(text.tokens))"
    )
    assert check_output(clean_python, "-c", program, cwd="/").strip() == "[] 4"


def test_commands_of_the_runtime_alone(clean_python, tiny_artefact):
    clada = clean_python.with_name("clada")
    assert "llama, " in check_output(clada, "inspect", tiny_artefact)
    check_output(clada, "run", tiny_artefact, "--prompt", "x", "--max-new-tokens", 2)
    assert {"bench", "eval", "verify"} <= set(check_output(clada, "--help").split())
    evaluation = ["eval", tiny_artefact, "--reference", "x", "--data", "x", "--json", "x"]
    verification = ["verify", tiny_artefact, "--model", "x"]
    for arguments, extra in ((verification, "export"), (["bench"], "bench"), (evaluation, "eval")):
        result = subprocess.run([clada, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: `clada {arguments[0]}` needs ")
        assert f"pip install 'clada[{extra}]'" in result.stderr


def test_exporter_without_torch_says_what_to_install(clean_python):
    command = clean_python.with_name("clada-export")
    result = subprocess.run([command, "m.onnx", "--model", "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: clada-export needs ")
    assert "pip install 'clada[export]'" in result.stderr


LAYERS = ("plugins", "runtime", "exporter", "evaluation", "benchmark")


@pytest.mark.parametrize("package", LAYERS)
def test_nothing_imports_upward(package):
    """The plugins know none of the others, the runtime not the exporter, and nothing knows the benchmark."""
    above = [f"clada.{name}" for name in LAYERS[LAYERS.index(package) + 1 :]]
    for path in (ROOT / package).rglob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in imports if any(name in line for name in above)], path
