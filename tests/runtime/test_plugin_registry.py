"""The built library of TensorRT plugins, in the registries of the TensorRTs that are installed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from clada.errors import CladaError
from clada.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES, VERSION
from clada.plugins.tensorrt import library, library_path, library_version, register
from gpu_suite.build import PROBE, tensorrt_headers
from tests.conftest import ROOT, built_for_cuda
from tests.support.stand_ins import build_stand_in
from tests.tensorrt.checks import all_fields

# What the parser hands over beside an op's own fields.
MORE = ({}, PLUGIN_ATTRIBUTES)
# Whichever of these are installed; the bindings alone do without the package that fetches the libraries.
MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings", "tensorrt_rtx")


@pytest.fixture
def built() -> Path:
    """Library that `make test-cuda` links where it has TensorRT's headers."""
    if "TENSORRT_INCLUDE_DIR" not in os.environ:
        pytest.skip("TENSORRT_INCLUDE_DIR is not set: the plugins are not built")
    return built_for_cuda("tensorrt/libclada_trt.so")


@pytest.fixture(params=MODULES)
def module(request) -> str:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def probe() -> Path:
    """Probe that calls plugins as TensorRT does."""
    if tensorrt_headers() is None:
        pytest.skip("TENSORRT_INCLUDE_DIR is not set: there are no headers to call the plugins with")
    return build_stand_in(PROBE)


def ask(module: str, path: Path, nodes: list, *probe: Path) -> tuple[dict, str]:
    """Run a TensorRT on nodes; returns its answers, and the text on stderr."""
    command = [sys.executable, "-m", "tests.tensorrt.registry", module, str(path), *map(str, probe)]
    run = subprocess.run(command, cwd=ROOT, input=json.dumps(nodes), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def test_registry_finds_and_creates_every_plugin(module, built):
    nodes = [(op.name, {**fields, **more}) for op in OPS.values() for fields in all_fields(op) for more in MORE]
    results = ask(module, built, nodes)[0]["results"]
    for (name, _), result in zip(nodes, results, strict=True):
        op = OPS[name]
        assert result["announced"] == [attribute.name for attribute in op.attributes]
        assert result["plugin"] == [name, str(VERSION), DOMAIN, len(op.outputs)]
        assert not result["messages"]


def test_registered_plugins_answer_as_the_records_say(module, built, probe):
    """Shapes, types, formats, fields after serializing and cloning."""
    answer, stderr = ask(module, built, [], probe)
    assert answer["checked"] == list(OPS)
    assert "clada: " not in stderr


def test_wrong_fields_are_refused_in_one_line(module, built):
    for op in OPS.values():
        answer, stderr = ask(module, built, [(op.name, {"width": 4.0})])
        line = f"{op.name}: node 'node': field 'width' is not known; "
        (result,) = answer["results"]
        assert "plugin" not in result
        # On stderr where TensorRT has no logger, as without a driver, or one of another release.
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


def test_library_of_another_release(compiled, monkeypatch):
    path = compiled('const char* clada_version(void) { return "0.0.9"; }')
    ours = version("clada")
    monkeypatch.chdir(path.parent)
    for given in (path, Path(path.name)):
        with pytest.raises(
            CladaError, match=rf"{path} is of clada 0.0.9, and this is clada {ours}: build the plugins again"
        ):
            register(SimpleNamespace(get_plugin_registry=no_tensorrt), given)


def test_library_that_tensorrt_does_not_take(module, compiled):
    """One that has no plugins."""
    path = compiled(f'const char* clada_version(void) {{ return "{version("clada")}"; }}')
    command = [sys.executable, "-m", "tests.tensorrt.registry", module, str(path)]
    run = subprocess.run(command, cwd=ROOT, input="[]", capture_output=True, text=True, check=False)
    lines = [line for line in run.stderr.splitlines() if "CladaError: " in line]
    assert len(lines) == 1, run.stderr
    assert f"did not take the plugins {', '.join(OPS)} from {path}: build them with the headers of" in lines[0]


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
