"""Installation of clada as a user does it: in a fresh environment, built in isolation, from a clone and an sdist."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.tree import package_files

BLOCKED = ("torch", "transformers", "onnx", "onnxscript")


def check_output(*args: object, **options: object) -> str:
    result = subprocess.run([str(a) for a in args], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def environment(**changes: str | None) -> dict[str, str]:
    """Ours, with variables set, or where None unset; CMake's arguments and CUDA are asked for by nobody."""
    changes = {"CMAKE_ARGS": None, "CLADA_CUDA": None, "CLADA_NATIVE": None, **changes}
    return {**{k: v for k, v in os.environ.items() if k not in changes}, **{k: v for k, v in changes.items() if v}}


def fresh_python(folder: Path) -> Path:
    """An interpreter in which nothing is installed: no build finds packages in it that its isolation lacks."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The archive of the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    program = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    check_output(sys.executable, "-c", program, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed_sdist(sdist, tmp_path_factory) -> tuple[Path, Path]:
    """A wheel of the archive, and an interpreter in which it is installed.

    Built in isolation, in an environment that has nothing. What it requires is then found among what the tests have.
    Not optimized, to compile in half the time.
    """
    folder = tmp_path_factory.mktemp("archive")
    python = fresh_python(folder / "venv")
    pip = [python, "-m", "pip", "--quiet"]
    settings = ["--no-deps", "--wheel-dir", folder, "--config-settings=cmake.build-type=Debug"]
    check_output(*pip, "wheel", *settings, sdist, cwd="/", env=environment(CXXFLAGS="-g0"))
    (wheel,) = folder.glob("*.whl")
    check_output(*pip, "install", "--no-deps", wheel, cwd="/")
    ours, theirs = Path(sysconfig.get_path("purelib")), python.parent.parent
    # Only a place to look in: our own clada, which a .pth file there leads to, is not to be found.
    (theirs / ours.relative_to(sys.prefix) / "tests.pth").write_text(f"{ours}\n")
    return wheel, python


@pytest.fixture(scope="module")
def clean_python(installed_sdist, tmp_path_factory) -> Path:
    """An interpreter in which the wheel is installed with what the runtime requires, and nothing else."""
    wheel, _ = installed_sdist
    python = fresh_python(tmp_path_factory.mktemp("clean"))
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    check_output(*install, cwd="/", env=environment())
    return python


WHERE = "import clada.plugins, pathlib; print(pathlib.Path(clada.plugins.__file__).resolve())"


@pytest.mark.fault(
    "installation", "pip install of the archive of the sources, isolated", now="installs, with native kernels"
)
def test_the_archive_installs_with_kernels(installed_sdist, tiny_artifact):
    _, python = installed_sdist
    assert python.parent.parent in Path(check_output(python, "-c", WHERE, cwd="/").strip()).parents
    program = (
        "from clada.runtime import GenerationConfig, Session\n"
        f"session = Session({str(tiny_artifact)!r})\n"
        "print(len(session.generate('def f(', GenerationConfig(max_new_tokens=4))[0].tokens), session.kernels)"
    )
    count, _, kernels = check_output(python, "-c", program, cwd="/").strip().partition(" ")
    assert count == "4"
    assert kernels.startswith("native kernels"), kernels
    assert "--model" in check_output(python.with_name("clada-export"), "--help", cwd="/")


def test_wheel_holds_only_clada(installed_sdist):
    names = zipfile.ZipFile(installed_sdist[0]).namelist()
    assert {name.split("/")[0] for name in names} == {"clada", "clada-0.1.0.dist-info"}
    packages = {name.split("/")[1] for name in names if name.count("/") > 1 and name.startswith("clada/")}
    assert packages == {"benchmark", "contract", "evaluation", "exporter", "ops", "plugins", "runtime", "server"}
    assert "clada/py.typed" in names
    assert package_files("clada").keys() - set(names) == {"clada/plugins/kernels/op_table.py"}
    assert {"clada/exporter/data/calibration.jsonl", "clada/exporter/data/LICENSE-PSF.txt"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    licenses = {name.partition("licenses/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licenses == {"LICENSE", "THIRD-PARTY-NOTICES.md", "exporter/data/LICENSE-PSF.txt"}
    assert [name for name in names if name.endswith(".so")] == ["clada/plugins/onnxruntime/libclada_onnxruntime.so"]
    sources = (".cpp", ".h", ".cu", ".cuh", ".map", ".a", "CMakeLists.txt", "op_table.py")
    assert not [name for name in names if name.endswith(sources)]


def test_wheel_says_what_is_in_it(installed_sdist):
    """Its bill of materials is where PEP 770 has it, and tells of each file that is no module and not ours."""
    wheel = zipfile.ZipFile(installed_sdist[0])
    names = wheel.namelist()
    assert [name for name in names if "/sboms/" in name] == ["clada-0.1.0.dist-info/sboms/clada.cdx.json"]
    bill = json.loads(wheel.read("clada-0.1.0.dist-info/sboms/clada.cdx.json"))
    parts = bill["metadata"]["component"]["components"]
    told = {place["location"] for part in parts for place in part["evidence"]["occurrences"]}
    ours = {"clada/py.typed", "clada/evaluation/templates/report.html", "clada/exporter/data/LICENSE-PSF.txt"}
    ours |= {f"clada/server/page/{name}" for name in ("index.html", "page.css", "page.js")}
    others = {name for name in names if name.startswith("clada/") and not name.endswith(".py")}
    assert others - ours == told


@pytest.mark.fault(
    "installation", "no headers, no compiler, and CLADA_NATIVE=none", now="installs, without native kernels"
)
def test_without_kernels_where_that_is_asked_for(tmp_path):
    """Nothing is needed that compiles, and the wheel is for any machine."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    asked = environment(CLADA_NATIVE="none", CXX="/absent", CLADA_ONNXRUNTIME_INCLUDE="/absent", CLADA_CUDA="1")
    check_output(*pip, "--wheel-dir", tmp_path, ROOT, env=asked)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == "clada-0.1.0-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "clada/runtime/session.py" in names
    assert not [name for name in names if name.endswith(".so")]


def configure(folder: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=PATH)}"]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, check=False)


PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
NO_HEADERS = "ONNX Runtime's C++ headers (onnxruntime_cxx_api.h), against which the native kernels are built, were not "
REFUSED = [
    (
        {"CLADA_ONNXRUNTIME_INCLUDE": "/absent"},
        NO_HEADERS + "found in /absent, to which CLADA_ONNXRUNTIME_INCLUDE is set",
    ),
    ({"CXX": "/absent"}, "no C++ compiler that works was found"),
    ({"CLADA_NATIVE": "no"}, 'CLADA_NATIVE is "no"; unset it, or set it to none'),
    ({"CLADA_CUDA": "1", "CUDACXX": "/absent"}, "CLADA_CUDA=1 asks for the CUDA kernels, and no CUDA compiler"),
    ({"CLADA_CUDA": "yes"}, 'CLADA_CUDA is "yes"; set it to 1'),
    ({"CLADA_ONNXRUNTIME_INCLUDE": "old"}, "are of ONNX Runtime 1.19, and 1.20 is the oldest"),
]


@pytest.mark.fault(
    "installation", "something that the native kernels need is missing", now="fails in one line, which says what to do"
)
@pytest.mark.parametrize(("changes", "line"), REFUSED)
def test_what_cannot_be_built_says_what_to_do(tmp_path, changes, line):
    if changes.get("CLADA_ONNXRUNTIME_INCLUDE") == "old":
        old = tmp_path / "old"
        old.mkdir()
        (old / "onnxruntime_cxx_api.h").touch()
        (old / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 19\n")
        changes = {"CLADA_ONNXRUNTIME_INCLUDE": str(old)}
    result = configure(tmp_path / "build", **changes)
    assert result.returncode != 0
    (error,) = [text for text in result.stderr.splitlines() if text.strip().startswith("error: ")]
    assert line in error
    if "headers" in line:
        assert "set CLADA_ONNXRUNTIME_INCLUDE to the full path of its include folder" in error
        assert "or CLADA_NATIVE=none for an installation without native kernels" in error


@pytest.mark.fault("installation", "headers missing, through pip", now="fails, and pip shows why")
def test_pip_shows_why(tmp_path):
    source = tmp_path / "clada"
    left_out = shutil.ignore_patterns(".*", "build", "out", "dist", "models", "tests")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    absent = environment(CLADA_ONNXRUNTIME_INCLUDE="/absent")
    result = subprocess.run(pip, env=absent, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert NO_HEADERS in result.stdout + result.stderr
    assert not list(tmp_path.glob("*.whl"))


def cuda_targets(folder: Path) -> bool:
    return "clada_kernels_cuda" in (folder / "build.ninja").read_text()


@pytest.mark.fault("installation", "an nvcc is there, and CUDA was not asked for", now="CUDA's kernels are left out")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_cuda_is_built_where_it_is_asked_for_alone(tmp_path):
    """Not because a compiler is there, and not because an earlier run found one."""
    for asked in ("1", None):
        result = configure(tmp_path, CLADA_CUDA=asked, CLADA_CUDA_ARCHITECTURES="90-real")
        assert result.returncode == 0, result.stderr
        assert cuda_targets(tmp_path) == (asked is not None)


def test_runtime_needs_no_torch(clean_python, tiny_artifact):
    """The artifact generates where none of the exporter's libraries is installed."""
    program = (
        "import importlib.util, sys\n"
        "from clada.runtime import GenerationConfig, Session\n"
        f"present = [n for n in {BLOCKED!r} if importlib.util.find_spec(n)]\n"
        f"text = Session({str(tiny_artifact)!r}).generate('def f(', GenerationConfig(max_new_tokens=4))[0]\n"
        "print(present, len(text.tokens))"
    )
    assert check_output(clean_python, "-c", program, cwd="/").strip() == "[] 4"


def test_commands_of_the_runtime_alone(clean_python, tiny_artifact):
    clada = clean_python.with_name("clada")
    assert "llama, " in check_output(clada, "inspect", tiny_artifact)
    check_output(clada, "run", tiny_artifact, "--prompt", "x", "--max-new-tokens", 2)
    assert {"bench", "eval", "verify"} <= set(check_output(clada, "--help").split())
    evaluation = ["eval", tiny_artifact, "--reference", "x", "--data", "x", "--json", "x"]
    verification = ["verify", tiny_artifact, "--model", "x"]
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
