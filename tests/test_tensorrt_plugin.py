"""The built library of TensorRT plugins, in the registries of the TensorRTs that are installed."""

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from clada.plugins.errors import CladaError
from clada.plugins.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES, VERSION
from clada.plugins.tensorrt import library, library_path, library_version, register

ROOT = Path(__file__).parent.parent
MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")


@pytest.fixture
def built() -> Path:
    try:
        return library_path()
    except CladaError as error:
        pytest.skip(str(error))


@pytest.fixture(params=MODULES)
def module(request) -> str:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def ask(module: str, path: Path, nodes: list) -> tuple[list[dict], str]:
    """What a TensorRT makes of nodes, and what went to stderr."""
    command = [sys.executable, "-m", "tests.tensorrt.registry", module, str(path)]
    run = subprocess.run(command, cwd=ROOT, input=json.dumps(nodes), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])["results"], run.stderr


def test_registry_finds_and_creates_every_plugin(module, built):
    nodes = []
    for op in OPS.values():
        for values in itertools.product(*(attribute.choices or (0.25,) for attribute in op.attributes)):
            fields = dict(zip([attribute.name for attribute in op.attributes], values, strict=True))
            nodes += [(op.name, fields), (op.name, {**fields, **PLUGIN_ATTRIBUTES})]
    results, _ = ask(module, built, nodes)
    for (name, _), result in zip(nodes, results, strict=True):
        op = OPS[name]
        assert result["announced"] == [attribute.name for attribute in op.attributes]
        assert result["plugin"] == [name, str(VERSION), DOMAIN, len(op.outputs)]
        assert not any(message.startswith(name) for message in result["messages"])


def test_wrong_fields_are_refused_in_one_line(module, built):
    for op in OPS.values():
        ((result,), stderr) = ask(module, built, [(op.name, {})])
        line = f"{op.name}: node 'node': field '{op.attributes[0].name}' is missing; it must be "
        assert "plugin" not in result
        # A lean runtime that found no driver has no logger.
        lines = [text for text in (*result["messages"], *stderr.splitlines()) if line in text]
        assert len(lines) == 1


def test_library_shows_only_its_entry_points(built):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    symbols = subprocess.run([nm, "-D", built], capture_output=True, text=True, check=True).stdout.splitlines()
    entry_points = (ROOT / "plugins/tensorrt/entry_points.map").read_text()
    exported = {line.split()[-1] for line in symbols if " U " not in line and " w " not in line}
    assert exported == set(re.search(r"global: (.*);\n", entry_points)[1].split("; "))
    assert not any("nvinfer" in line or "cublas" in line.lower() for line in symbols)


def test_library_is_of_this_release(built):
    assert library_version(built) == version("clada")


def test_installation_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(CladaError, match=r"no TensorRT plugins \(libclada_trt.so\).*TENSORRT_INCLUDE_DIR"):
        library_path()


@pytest.fixture
def compiled(tmp_path):
    """A library from C."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")

    def compiled(source: str) -> Path:
        (tmp_path / "library.c").write_text(source)
        path = tmp_path / "library.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, tmp_path / "library.c"], check=True)
        return path

    return compiled


def no_tensorrt():
    pytest.fail("TensorRT was asked")


def test_library_of_another_release(compiled):
    path = compiled('const char* clada_version(void) { return "0.0.9"; }')
    ours = version("clada")
    with pytest.raises(CladaError, match=rf"library.so is of clada 0.0.9, and this is clada {ours}: build the plugins"):
        register(SimpleNamespace(get_plugin_registry=no_tensorrt), path)


def test_library_that_is_none_of_ours(compiled):
    with pytest.raises(
        CladaError, match=r"library.so is not a library of clada's TensorRT plugins; use libclada_trt.so"
    ):
        library_version(compiled("int x;"))


def test_file_that_is_no_library(tmp_path):
    path = tmp_path / "library.so"
    with pytest.raises(CladaError, match=r"cannot be used: .*library.so: cannot open shared object file"):
        library_version(path)
    path.write_text("text")
    with pytest.raises(CladaError, match=r"cannot be used: .*library.so: (file too short|invalid ELF header)"):
        library_version(path)
