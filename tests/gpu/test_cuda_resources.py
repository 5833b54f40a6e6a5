"""Table of the CUDA kernels' resources: parsed from ptxas's output, and every change detected."""

import dataclasses
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "cuda_resources.py"
LAUNCHER = ROOT / "scripts" / "keep_ptxas_output.sh"
module = runpy.run_path(str(SCRIPT))

RELEASE = "Cuda compilation tools, release 13.0, V13.0.88\n"
KERNEL = "_ZN5clada4cuda39_GLOBAL__N__81768989_7_down_cu_6d7ad8194downI6__halfLi8EEEvNS0_7RowwiseE"


def said(kernel: str = KERNEL, registers: int = 125, spills: str = "0", shared: str = ", 22628 bytes smem") -> str:
    """Output of ptxas 13.0, for two architectures."""
    return "".join(
        f"ptxas info    : 0 bytes gmem\n"
        f"ptxas info    : Compiling entry function '{kernel}' for '{architecture}'\n"
        f"ptxas info    : Function properties for {kernel}\n"
        f"    {spills} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers{shared}, 552 bytes cmem[0]\n"
        for architecture in ("sm_120", "sm_90")
    )


def build_of(folder: Path, text: str) -> Path:
    """A build in which ptxas said this of one source, and nothing of the others."""
    objects = folder / "kernels" / "clada_kernels_cuda.dir"
    objects.mkdir(parents=True, exist_ok=True)
    for source in module["SOURCES"].glob("*.cu"):
        (objects / f"{source.name}.o.ptxas").write_text(RELEASE + (text if source.name == "down.cu" else ""))
    return folder


def run(build: Path, table: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--build", build, "--table", table, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_table_is_written_and_compared(tmp_path):
    build, table = build_of(tmp_path / "build", said()), tmp_path / "table.csv"
    assert run(build, table).returncode == 0
    assert table.read_text().splitlines() == [
        "kernel,architecture,registers,spilled_bytes,stack_bytes,shared_bytes,nvcc",
        '"down<half, 8>",sm_90,125,0,0,22628,13.0.88',
        '"down<half, 8>",sm_120,125,0,0,22628,13.0.88',
    ]
    result = run(build, table, "--check")
    assert (result.returncode, result.stdout) == (0, "2 kernels: nothing is spilled\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (said(registers=128), "down<half, 8> on sm_90: registers was 125, is 128; after `make test-cuda-all`, "),
        (said(shared=""), "down<half, 8> on sm_90: shared_bytes was 22628, is 0; after `make test-cuda-all`, "),
        (said(spills="4"), "down<half, 8> on sm_90: spilled_bytes is 8; was 0; nothing may be spilled"),
        (said(KERNEL.replace("Li8", "Li4")), "down<half, 4> on sm_90: is not in the table; "),
        ("", "down<half, 8> on sm_90: is not compiled any more; "),
        (said() + "ptxas info    : Compiling entry function 'x' for 'sm_90'\n", "this release of ptxas says something"),
    ],
)
def test_every_change_is_a_line(tmp_path, text, complaint):
    table = tmp_path / "table.csv"
    run(build_of(tmp_path / "build", said()), table)
    result = run(build_of(tmp_path / "build", text), table, "--check")
    assert result.returncode == 1
    assert any(line.startswith(f"error: {complaint}") for line in result.stderr.splitlines()), result.stderr


def test_some_architectures_are_compared_by_themselves(tmp_path):
    """Each kernel of those, and none of the others."""
    table, build = tmp_path / "table.csv", build_of(tmp_path / "build", said())
    run(build, table)
    one = build_of(tmp_path / "one", said().split("ptxas info    : 0 bytes gmem")[2])
    assert run(one, table, "--check").returncode == 1
    assert run(one, table, "--check", "--architectures", "sm_90").stdout == "1 kernels: nothing is spilled\n"
    result = run(one, table, "--check", "--architectures", "sm_90", "sm_120")
    assert result.stderr.startswith("error: down<half, 8> on sm_120: is not compiled any more; ")
    assert run(one, table, "--architectures", "sm_90").returncode == 2


def test_another_nvcc_is_compared_for_spills_alone():
    resources = module["Resources"](125, 0, 0, 22628)
    table, other = (module["Table"](nvcc, {("down", "sm_90"): resources}) for nvcc in ("13.0.88", "13.1.5"))
    more = dataclasses.replace(resources, registers=130)
    assert module["differences"](table, dataclasses.replace(other, kernels={("down", "sm_90"): more})) == []
    spilled = dataclasses.replace(other, kernels={("down", "sm_90"): dataclasses.replace(more, spilled_bytes=4)})
    assert len(module["differences"](table, spilled)) == 1


def test_what_cannot_be_compared_says_why(tmp_path):
    build, table = tmp_path / "build", tmp_path / "table.csv"
    assert "holds nothing that ptxas said of dense_ffn.cu; run `make test-cuda-all`" in run(build, table).stderr
    build_of(build, said())
    assert "table.csv cannot be read" in run(build, table, "--check").stderr
    (log,) = build.glob("**/down.cu.o.ptxas")
    log.write_text(log.read_text().replace("13.0.88", "13.1.5"))
    assert "was compiled by several nvcc (13.0.88, 13.1.5); remove it and build" in run(build, table).stderr
    assert not table.exists()


def test_table_is_of_what_is_there():
    """Each architecture of the build, each kernel of the sources, nothing spilled."""
    table = module["read_table"](module["TABLE"])
    architectures = re.search(r"foreach\(architecture ([\d ]+)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()
    sources = "".join(path.read_text() for path in module["SOURCES"].glob("*.cu"))
    kernels = set(re.findall(r"__global__ void __launch_bounds__\([^;{]*?\)\s+(\w+)\(const", sources))
    assert {kernel.partition("<")[0] for kernel, _ in table.kernels} == kernels
    names = {kernel for kernel, _ in table.kernels}
    assert table.kernels.keys() == {(name, f"sm_{number}") for name in names for number in architectures}
    assert not any(resources.spilled_bytes for resources in table.kernels.values())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_launcher_keeps_what_ptxas_says(tmp_path):
    """Other output is passed on as well, as is the exit status."""
    source, out = tmp_path / "some.cu", tmp_path / "some.cu.o"
    command = [LAUNCHER, "nvcc", "-arch=sm_90", "-Xptxas=-v", "-c", source, "-o", out]
    source.write_text("__global__ void some(float* x) { int unused; x[threadIdx.x] = 1.0f; }")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "never referenced" in result.stderr
    assert "ptxas info" not in result.stderr
    ((symbol, architecture, resources),) = module["said"]((tmp_path / "some.cu.o.ptxas").read_text())
    assert (module["readable"]([symbol])[symbol], architecture) == ("some", "sm_90")
    assert 0 < resources.registers < 32
    source.write_text("no C++")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "some.cu(1): error" in result.stderr
