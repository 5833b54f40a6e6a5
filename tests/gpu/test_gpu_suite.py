"""GPU suite, as far as no GPU is needed: its checks, counts, builds and reports, and its errors."""

import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clada.benchmark.exact_thresholds import exact_share
from clada.benchmark.precisions import BLOCKS
from clada.benchmark.report import Row, Table
from clada.benchmark.shapes import SHAPES
from clada.benchmark.timing import wall_seconds
from clada.errors import CladaError
from clada.ops import OPS, QUANTIZED_FFN, QUANTIZED_LINEAR, SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.record import FLOAT_TYPES, Op
from gpu_suite import build as gpu_build
from gpu_suite import suite
from gpu_suite import timing as gpu_timing
from gpu_suite.calls import Product
from gpu_suite.checks import Check, checked_call, expected, rounded
from gpu_suite.device import Device
from gpu_suite.kernels import Kernels, load, torch_products
from gpu_suite.layers import (
    Layer,
    bytes_needed,
    copies_of,
    count_of,
    exact_selection,
    matrix_bytes,
    random_layer,
    random_quantized_layer,
    random_x,
)
from gpu_suite.report import Report, json_text, markdown, parity, targets
from gpu_suite.timing import (
    IN_GRAPH,
    LAUNCHED,
    LAYER,
    PREFILL,
    QUANTIZED_LAYER,
    LeftOut,
    Timing,
    dense_layers,
    layer_contenders,
    load_contenders,
)
from tests.conftest import ROOT
from tests.gpu.conftest import needs_nvcc
from tests.support.stand_ins import build_stand_in

SHAPE = SHAPES["tiny"]
SCRIPT = ROOT / "scripts" / "gpu_suite.py"
MEMORY = 1 << 30


def host_bytes(address: int, size: int) -> torch.Tensor:
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.uint8)


HOST = Device("cpu", lambda: 0, host_bytes, lambda: None, None, wall_seconds)
# What replays as a graph would, so that the way through graphs is taken too.
HOST_WITH_GRAPHS = dataclasses.replace(HOST, captured=lambda run: run)


@pytest.fixture(scope="module")
def library() -> Path:
    """The C interface over the CPU's kernels."""
    return build_stand_in("clada_cuda_stand_in")


@pytest.fixture
def kernels(library) -> Kernels:
    loaded = load(library, HOST)
    ctypes.c_int.in_dll(loaded.library, "clada_fault").value = 0
    return loaded


def failures(report: Report) -> list[Check]:
    return [check for group in report.parity for check in group.failed]


@pytest.mark.parametrize("tokens", [1, 4, 8])
@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.4, 0.2, 0.001])
def test_thresholds_keep_exactly_the_share(tokens, fraction):
    """Of every token its largest activations, and no threshold is near enough for float32 sums to cross it."""
    z = np.random.default_rng(0).standard_normal((tokens, 4864))
    magnitude = np.abs(z / (1 + np.exp(-z)))
    threshold, scale = exact_share(magnitude, fraction)
    assert threshold.dtype == scale.dtype == np.float32
    relative = magnitude / (scale[:, None].astype(np.float64) * threshold)
    kept = relative >= 1
    assert (kept.sum(axis=1) == round(fraction * 4864)).all()
    for row, of_token in zip(kept, magnitude, strict=True):
        assert of_token[row].min() > of_token[~row].max(initial=0)
    distance = np.abs(np.log(relative)).min()
    assert distance > 0.99 * np.log(2) if tokens == 1 else distance > 1e-4


def test_every_op_passes_in_every_type(kernels):
    report = suite.check_kernels(kernels, [SHAPE])
    assert not failures(report)
    assert [group.subject for group in report.parity] == [f"{op} {name}" for op in OPS for name in FLOAT_TYPES]
    # At real sizes quantized weights are of 4 and of 8 bits.
    real = {"LoadSignal": 1, "SparseLinear": 6, QUANTIZED_LINEAR.name: 12}
    real |= dict.fromkeys((op.name for op in QUANTIZED_FFN.values()), 18)
    for group in report.parity:
        op = OPS[group.subject.split()[0]]
        # Each case: its outputs, a repetition, and what is around them.
        assert group.checks == (len(op.outputs) + 2) * (len(list(op.cases())) + real.get(op.name, 9))
        assert 0 < group.required < 0.7


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (1, {"y"}),
        (2, {"active"}),
        (3, {"written outside of outputs and workspace"}),
        (4, {"bytes that differ when repeated"}),
        (5, {"y"}),
    ],
)
@pytest.mark.parametrize("element", FLOAT_TYPES)
def test_faults_are_found(kernels, element, fault, found):
    """Each is named correctly."""
    op = SPARSE_GATED_FFN
    case = next(case for case in op.cases() if case.name == "silu-mixed-B3-S2")
    given = rounded(op, case, getattr(torch, element), "cpu")
    wanted = expected(op, given)

    def failed() -> set[str]:
        checks = checked_call(kernels, op, "subject", given.tensors, case.attributes, wanted)
        return {check.what for check in checks if not check.passed}

    assert not failed()
    ctypes.c_int.in_dll(kernels.library, "clada_fault").value = fault
    assert failed() == found


def test_a_graph_that_does_not_compute_the_same_is_found(library):
    """Here one that replays nothing: outputs stay as poisoned."""
    kernels = load(library, dataclasses.replace(HOST, captured=lambda _: lambda: None))
    op = OPS["LoadSignal"]
    case = next(op.cases())
    given = rounded(op, case, torch.float32, "cpu")
    checks = checked_call(kernels, op, "subject", given.tensors, case.attributes, expected(op, given))
    assert {check.what for check in checks if not check.passed} == {"bytes that differ in a CUDA graph"}


def test_a_launch_that_fails_says_why(kernels):
    ctypes.c_int.in_dll(kernels.library, "clada_fault").value = 6
    with pytest.raises(CladaError, match=r"SparseGatedFFN cannot be launched: out of memory \(CUDA error 2\)"):
        suite.check_kernels(kernels, [SHAPE])


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("element", FLOAT_TYPES)
def test_products_are_torchs(element, transposed):
    """Rows of the result may have gaps, which stay as they are."""
    dtype = getattr(torch, element)
    a, b, c = torch.randn(5, 7).to(dtype), torch.randn(7, 3).to(dtype), torch.full((5, 4), 9, dtype=dtype)
    stored = b.T.contiguous() if transposed else b
    pointers = (tensor.data_ptr() for tensor in (a, stored, c))
    product = Product(5, 3, 7, FLOAT_TYPES.index(element), *pointers, 4, transposed)
    products = torch_products(HOST)
    assert products.multiply(None, ctypes.byref(product), None) == 0
    torch.testing.assert_close(c[:, :3], a @ b)
    assert (c[:, 3] == 9).all()


def test_a_product_that_fails_is_an_error_of_the_call(capfd):
    product = Product(5, 3, 7, 99, 0, 0, 0, 3, False)
    assert torch_products(HOST).multiply(None, ctypes.byref(product), None) == 999
    assert "IndexError" in capfd.readouterr().err


def layer_of(precision: str, dtype: torch.dtype, op: Op = SPARSE_GATED_FFN) -> Layer:
    """A tiny layer with weights in a precision, that of its tokens or another."""
    if precision in BLOCKS:
        return random_quantized_layer(op, SHAPE, dtype, precision, "cpu")
    return random_layer(op, SHAPE, dtype, "cpu")


@pytest.mark.parametrize("precision", ["float32", "int4", "int8"])
@pytest.mark.parametrize("op", [SPARSE_GATED_FFN, SPARSE_FFN], ids=lambda op: op.name)
def test_torchs_dense_layers_compute_the_op(op, precision):
    """Each of them, on each copy: ours is compared with them."""
    layer = layer_of(precision, torch.float32, op)
    x = random_x(layer, 2, 3)
    inputs = {name: tensor.numpy() for name, tensor in {"x": x, **layer.weights}.items()}
    inputs = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in inputs.items()}
    inputs |= {
        "threshold": np.zeros(SHAPE.neurons),
        "scale": np.zeros((2, 3)),
        "pool": np.ones((2, SHAPE.neurons), np.bool_),
    }
    y = layer.op.reference(*(inputs[spec.name] for spec in layer.op.inputs), **layer.attributes)[0]
    assert np.abs(y).mean() > 0.01
    copies = copies_of(layer, 3, 3)
    for function in dense_layers(copies):
        for weights in copies.dense:
            np.testing.assert_allclose(function(x, weights).numpy(), y, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "matrix"), [("float16", 2 * 256 * 128), ("int4", 256 * (64 + 8)), ("int8", 256 * (128 + 8))]
)
@pytest.mark.parametrize("batch", [1, 4])
def test_contenders_read_what_they_say(kernels, batch, precision, matrix):
    """A dense layer all matrices; ours all gates, and of the rest the rows that any token keeps."""
    layer = layer_of(precision, torch.float16)
    copies = copies_of(layer, 2, 2)
    assert sum(tensor.nbytes for name, tensor in copies.ours[0].items()) == 3 * matrix
    contenders = {c.name: c for c in layer_contenders(kernels, copies, (batch, 1), (1.0, 0.4), graph=False)}
    size = SHAPE.neurons * SHAPE.hidden * 2
    for name in ("cuBLAS dense float16", "cuBLAS dense, gate and up as one float16"):
        assert (contenders[name].always_bytes, contenders[name].active_bytes) == (3 * size, 0)
    sparse = contenders[f"ours 40% {precision}"]
    assert (sparse.always_bytes, sparse.active_bytes) == (matrix, 2 * matrix)
    assert sparse.repeats % 2 == 0
    x = random_x(layer, batch, 1)
    chosen = exact_selection(layer, x, 0.4)
    a = torch.nn.functional.silu(x[:, 0].double() @ layer.inward.double().T)
    kept = a.abs() >= chosen["scale"].double() * chosen["threshold"].double()
    assert (kept.sum(dim=1) == round(0.4 * SHAPE.neurons)).all()
    assert sparse.run() == pytest.approx(float(kept.any(dim=0).double().mean()))
    assert contenders[f"ours 100% {precision}"].run() == 1


def test_another_number_of_neurons_than_asked_for_is_an_error(kernels):
    ctypes.c_int.in_dll(kernels.library, "clada_fault").value = 2
    copies = copies_of(random_layer(SPARSE_GATED_FFN, SHAPE, torch.float16, "cpu"), 1, 1)
    with pytest.raises(CladaError, match=r"ours 40% float16 computed \[103\] neurons instead of 102"):
        layer_contenders(kernels, copies, (1, 1), (0.4,), graph=False)


@pytest.mark.parametrize("precision", ["float16", "int4", "int8"])
def test_copies_are_larger_than_the_cache_several_times(precision):
    cache = 50 << 20
    for shape in SHAPES.values():
        count, dense_count = (count_of(SPARSE_GATED_FFN, shape, name, cache) for name in (precision, "float16"))
        matrix = matrix_bytes(shape, precision)
        assert count * matrix >= 4 * cache
        assert count >= 4
        needed = bytes_needed(SPARSE_GATED_FFN, shape, precision, "float16", count, dense_count)
        assert needed > 3 * count * matrix + dense_count * matrix_bytes(shape, "float16")


def test_load_signal_reads_logits_once(kernels):
    torch_contender, our_contender = load_contenders(kernels, 512, "bfloat16", 10_000, graph=False)
    assert (torch_contender.name, our_contender.name) == ("torch bfloat16", "ours bfloat16")
    assert torch_contender.always_bytes == our_contender.always_bytes == 1024
    assert our_contender.repeats % 40 == 0


@pytest.fixture(scope="module")
def timed(library) -> Report:
    """Timings of everything, at a size that takes a moment."""
    timing = Timing(load(library, HOST_WITH_GRAPHS), 1000, lambda: MEMORY, elements=("float16",), rounds=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_timing, "_FEWEST_COPIED", 1 << 24)
        return suite.time_kernels(timing, [SHAPE])


def test_every_phase_is_timed(timed):
    found = [(table.what, table.phase, table.tokens) for table in timed.tables]
    layer, *quantized = (
        [(what, IN_GRAPH, 1), (what, LAUNCHED, 1), (what, PREFILL, 512)]
        for what in (LAYER, QUANTIZED_LAYER, QUANTIZED_LAYER)
    )
    signal = [("load signal", IN_GRAPH, 1), ("load signal", LAUNCHED, 1)]
    assert found == [*layer, *signal, *quantized[0], *quantized[1]]
    for first, precision in ((0, "float16"), (5, "int4"), (8, "int8")):
        names = [row.name for row in timed.tables[first].rows]
        assert names[2:] == [f"ours {share} {precision}" for share in ("100%", "60%", "40%", "20%")]
        assert [row.name for row in timed.tables[first + 2].rows][2:] == [f"ours dense {precision}"]


def test_ratios_are_against_the_fastest_dense_layer(timed):
    for table in timed.tables[:3] + timed.tables[5:]:
        dense = [row for row in table.rows if row.name.startswith("cuBLAS")]
        assert len(dense) == 2
        fastest = min(dense, key=lambda row: row.ms)
        for row in table.rows:
            times = np.array(fastest.samples_ms) / np.array(row.samples_ms)
            assert row.ratio == pytest.approx(np.median(times))


def test_floor_is_the_copy_of_the_same_moment(timed):
    sparse = next(row for row in timed.tables[0].rows if row.name == "ours 40% float16")
    kept = round(0.4 * SHAPE.neurons)
    assert sparse.bytes_read == SHAPE.hidden * 2 * (SHAPE.neurons + 2 * kept)
    shares = sparse.bytes_read / (np.array(sparse.bandwidth_gigabytes_per_second) * 1e9) / np.array(sparse.samples_ms)
    assert sparse.floor_share == pytest.approx(np.median(shares) * 1e3)


def test_what_does_not_fit_is_left_out(library):
    timing = Timing(load(library, HOST), 1000, lambda: 1000, elements=("float16",), rounds=1)
    report = suite.time_kernels(timing, [SHAPE])
    assert [left.what for left in report.left_out] == [
        f"tiny, SparseGatedFFN, {precision}" for precision in ("float16", "int4", "int8")
    ]
    assert "of the card's memory, of which 0.0 GB are free" in report.left_out[0].why
    assert {table.what for table in report.tables} == {"load signal"}


def layer_table(element: str, share: float, ratio: float) -> Table:
    row = Row(f"ours 40% {element}", ms=1, ratio=ratio, active_target=0.4, floor_share=share)
    return Table("llama-3-8b", LAYER, IN_GRAPH, 1, 0, (row,))


def test_targets_are_met_by_the_worst_type():
    tables = [layer_table("float16", 0.9, 1.7), layer_table("bfloat16", 0.7, 1.65)]
    bandwidth_60, bandwidth_40, ratio, whole = targets(tables)
    assert (bandwidth_60.reached, whole.reached) == (None, None)
    assert (bandwidth_40.reached, bandwidth_40.met) == (0.7, False)
    assert (ratio.reached, ratio.met) == (1.65, True)
    for other in ({"phase": LAUNCHED}, {"what": QUANTIZED_LAYER}):
        assert targets([dataclasses.replace(tables[0], **other)])[2].reached is None


def test_report_is_written_whole(tmp_path, timed):
    """As JSON that any reader takes, NaN or not, and as one Markdown table of every time."""
    failed = Check("SparseFFN float16 case", "y", float("nan"), 0.5)
    passed = Check("SparseFFN float16 case", "score", 0.1, 0.5)
    report = dataclasses.replace(
        timed,
        machine={"card": {"name": "Some Card"}, "versions": {"driver": "1.2"}},
        parity=tuple(parity([passed, failed])),
        left_out=(LeftOut("whole model", "no onnxruntime"),),
    )
    suite.save(report, tmp_path / "card.json")
    content = json.loads((tmp_path / "card.json").read_text(), parse_constant=pytest.fail)
    assert content["parity"][0]["failed"][0]["error"] == "nan"
    assert content["tables"][0]["rows"][2]["samples_ms"] == list(timed.tables[0].rows[2].samples_ms)
    assert [target["met"] for target in content["targets"]] == [False] * 4
    text = (tmp_path / "card.md").read_text()
    assert text == markdown(report)
    assert text.splitlines()[0] == "# Some Card"
    assert "FAILED SparseFFN float16 case: y: nan, allowed 0.5" in text
    assert "- left out: whole model: no onnxruntime" in text
    rows = [line for line in text.splitlines() if line.startswith("| tiny, layer | ")]
    assert len(rows) == 6 + 6 + 3
    assert len([line for line in text.splitlines() if line.startswith("| tiny, quantized layer | ")]) == 2 * len(rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "card.md"]
    assert not report.passed
    assert dataclasses.replace(report, parity=tuple(parity([passed]))).passed
    assert json_text(report).endswith("}\n")


def run_script(*args: object, python: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def says(result: subprocess.CompletedProcess[str], message: str) -> None:
    """One line, exit code 1."""
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
def test_no_driver():
    """Found without anything of ours installed: only this checkout."""
    says(run_script(PYTHONPATH=""), "this machine has no CUDA driver (libcuda.so.1 does not load)")


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a build with CUDA here")
@pytest.mark.parametrize(
    ("result", "message"),
    [(100, "finds no GPU that it can use (cuInit returned 100)"), (0, "was built without CUDA")],
)
def test_no_gpu_and_no_torch_with_cuda(tmp_path, result, message):
    source = f"int cuInit(unsigned f) {{ return {result}; }} int cuDriverGetVersion(int* v) {{ *v = 13000; return 0; }}"
    (tmp_path / "driver.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    says(run_script(LD_LIBRARY_PATH=str(tmp_path)), message)


def test_no_torch():
    says(run_script(python=("-I", "-S")), "numpy is not installed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "giant"], "no shape is called 'giant'"),
        (["--rounds", 0], "rounds is 0; at least 1 is needed"),
    ],
)
def test_wrong_options(options, message):
    says(run_script(*options), message)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(gpu_build, "INSTALLED", tmp_path)
    with pytest.raises(CladaError, match=r"nvcc is not on the PATH, in CUDA_HOME or in .*; install CUDA's compiler"):
        gpu_build.nvcc_path()


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ((), r"cmake is not on the PATH or beside .*; install it"),
        (("cmake",), "neither ninja nor make is on the PATH; install one of them"),
    ],
)
def test_nothing_to_build_with(monkeypatch, tmp_path, programs, message):
    monkeypatch.setattr(gpu_build, "_program", lambda name: name if name in programs else None)
    with pytest.raises(CladaError, match=message):
        gpu_build.built_here(ROOT, "sm_90", tmp_path)


@needs_nvcc
def test_build_makes_a_library_of_all_functions(checkout, monkeypatch, tmp_path):
    """For one architecture, without ONNX Runtime's headers; and again only where a source has changed."""
    monkeypatch.setenv("CLADA_ONNXRUNTIME_INCLUDE", str(tmp_path))
    root = shutil.copytree(checkout, tmp_path / "checkout")
    build = gpu_build.built_here(root, "sm_90", tmp_path / "build")
    path = build(gpu_build.KERNELS)
    assert load(path, HOST).rowwise_tokens == 8
    assert b".target sm_90" not in path.read_bytes()  # machine code alone, no PTX
    assert [found.name for found in (tmp_path / "build").iterdir() if found.name != "cmake"] == [path.name]
    first = path.stat().st_mtime_ns
    assert build(gpu_build.KERNELS).stat().st_mtime_ns == first
    header = root / "plugins" / "kernels" / "cuda" / "nothing.cuh"
    text = header.read_text()
    header.write_text(f"{text}\nint broken = unknown;\n")
    with pytest.raises(CladaError, match=r"the CUDA kernels for sm_90: .*nothing.cuh.*error.*unknown") as failure:
        gpu_build.built_here(root, "sm_90", tmp_path / "build")(gpu_build.KERNELS)
    assert "\n" not in str(failure.value)
    header.write_text(text)
    assert build(gpu_build.KERNELS).stat().st_mtime_ns > first
    with pytest.raises(CladaError, match=r"ONNX Runtime's custom ops for sm_90: .*clada_onnxruntime_cuda"):
        build(gpu_build.CUSTOM_OPS)


@needs_nvcc
def test_what_cmake_complains_of_is_one_line(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.22)
project(nothing LANGUAGES NONE)
message(STATUS "some words before")
message(FATAL_ERROR "This cannot be configured, because {"of many words " * 10}the end.")
"""
    )
    with pytest.raises(CladaError, match=r"sm_90: CMake Error at .* cannot be .*many words.*the end.$") as failure:
        gpu_build.built_here(tmp_path, "sm_90", tmp_path / "build")
    assert "\n" not in str(failure.value)


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know(checkout, tmp_path):
    with pytest.raises(CladaError, match=r"the CUDA kernels for sm_12345: .*nsupported gpu architecture"):
        gpu_build.built_here(checkout, "sm_12345", tmp_path / "build")


def test_libraries_of_another_machine_are_taken(library, tmp_path):
    shutil.copy(library, tmp_path / "libclada_cuda.so")
    found = gpu_build.built_elsewhere(tmp_path)
    assert load(found(gpu_build.KERNELS), HOST).rowwise_tokens == 8
    with pytest.raises(CladaError, match=r"the TensorRT plugins were not built: there is no .*libclada_trt.so"):
        found(gpu_build.PLUGINS)
