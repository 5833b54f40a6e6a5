"""Custom-op library in ONNX Runtime: sessions on it, and the messages where it cannot serve."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from clada.errors import CladaError
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import first_step
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.ops import LOAD_SIGNAL, QUANTIZED, QUANTIZED_LINEAR, SPARSE_GATED_FFN, graph_names
from clada.plugins.onnxruntime import library_path, register
from clada.runtime import GenerationConfig, Session
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel
from tests.conftest import ROOT
from tests.ops.test_ops import case_of, cast
from tests.support.op_backends import INSTRUCTIONS, body_model, make_constant

TEXT = "import os\nimport sys\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n" * 3
PROMPT_TOKENS = 24


def decode_inputs(model: OnnxRuntimeModel, ids: list[int], at: int, past_logits) -> dict:
    first = PROMPT_TOKENS if at == 0 else 1
    tokens = np.array([ids[:first] if at == 0 else ids[at : at + 1]], np.int64)
    return {
        graph_names.INPUT_IDS: tokens,
        graph_names.ATTENTION_MASK: np.ones((1, at + first), np.int64),
        graph_names.POSITION_IDS: np.arange(at, at + first)[None],
        graph_names.PAST_LOGITS: past_logits,
        **{graph_names.pool(n): np.ones((1, f), np.bool_) for n, f in enumerate(model.neurons)},
    }


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_native_session_computes_what_the_bodies_do(demo_artifact, demo_session, instructions, record_property):
    """Both read the same text on the same cache: the same neurons, the same logits.

    Rounding may put an activation on the other side of its threshold; such a neuron is counted, and its step is
    compared by nothing else.
    """
    bodies = OnnxRuntimeModel(demo_artifact, Execution(1, "bodies"))
    native = OnnxRuntimeModel(demo_artifact, Execution(2, "native", instructions=instructions))
    assert (bodies.kernels, native.kernels) == ("function bodies", f"native kernels, {instructions}")
    ids = demo_session.encode(TEXT)[: PROMPT_TOKENS + 48]
    scores = [graph_names.score(n) for n in range(bodies.layers)]
    fetch = [
        graph_names.LOGITS,
        graph_names.LOAD,
        graph_names.SURPRISAL,
        graph_names.ENTROPY,
        graph_names.ACTIVE,
        *scores,
    ]
    cache, past_logits, flips, compared = bodies.empty_cache(1), np.zeros((1, bodies.vocabulary), np.float32), 0, 0
    for at in [0, *range(PROMPT_TOKENS, len(ids))]:
        inputs = decode_inputs(bodies, ids, at, past_logits)
        ours, _ = native.step(inputs, cache, fetch)
        theirs, cache = bodies.step(inputs, cache, fetch)
        flipped = sum(int(((ours[name] > 0) != (theirs[name] > 0)).sum()) for name in scores)
        flips += flipped
        past_logits = theirs[graph_names.LOGITS][:, -1]
        for name in (graph_names.LOAD, graph_names.SURPRISAL, graph_names.ENTROPY):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
        if not flipped:
            compared += 1
            np.testing.assert_array_equal(ours[graph_names.ACTIVE], theirs[graph_names.ACTIVE])
            spread = np.ptp(theirs[graph_names.LOGITS])
            assert np.abs(ours[graph_names.LOGITS] - theirs[graph_names.LOGITS]).max() <= 1e-5 * spread
    record_property("flipped", f"{flips} of {(len(ids) - PROMPT_TOKENS) * sum(bodies.neurons)} neurons")
    assert compared >= 46
    assert flips <= 3


def test_generation_is_the_same_on_both(demo_artifact):
    """Greedy tokens and active fractions, in one text and in a batch."""
    prompts = ["def parse_args(argv):", "class Reader:", "for i in range("]
    native = Session(demo_artifact, threads=2, kernels="native")
    bodies = Session(demo_artifact, threads=2, kernels="bodies")
    assert native.kernels == f"native kernels, {INSTRUCTIONS[0]}"
    for batch in ([prompts[0]], prompts):
        ours, theirs = (s.generate(batch, GenerationConfig(max_new_tokens=24)) for s in (native, bodies))
        assert [c.tokens for c in ours] == [c.tokens for c in theirs]
        for figure in ("active_fraction", "read_fraction", "pool"):
            figures = [[getattr(s, figure) for c in completions for s in c.stats] for completions in (ours, theirs)]
            np.testing.assert_allclose(*figures, atol=1e-3)


def test_session_is_repeatable_to_the_bit(demo_artifact):
    """Whatever the number of the kernels' threads."""
    logits = []
    for _ in range(2):
        session = Session(demo_artifact, threads=2)
        state = session.prefill([session.encode(TEXT)])
        for token in session.encode("def main(argv):"):
            session.decode(state, [token])
        logits.append(state.logits.copy())
    np.testing.assert_array_equal(*logits)


@torch.no_grad()
def test_bfloat16_weights_are_those_of_a_rounded_model(tiny_artifact, checkpoint):
    """Against PyTorch with its feed-forward matrices rounded; biases and everything else as they were."""
    model, _ = load_model(str(checkpoint("llama")), torch.float32)
    sparsify(model)
    calibrated = Calibrated.from_graph(tiny_artifact)
    for layer in sparse_layers(model):
        for name in layer.weight_names:
            weight = layer.get_parameter(name)
            weight.copy_(weight.bfloat16().float())
    session = Session(tiny_artifact, weights="bfloat16")
    ids = session.encode(TEXT)[:32]
    decoder = Decoder(model, calibrated)
    step = first_step(model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
    expected = decoder(**step, **calibrated.tensors())[0][0, -1].numpy()
    assert np.abs(session.prefill([ids]).logits[0] - expected).max() <= 1e-5 * np.ptp(expected)
    unrounded = Session(tiny_artifact).prefill([ids]).logits[0]
    assert np.abs(unrounded - expected).max() > 1e-4 * np.ptp(expected)


MEMORY_PROGRAM = """
import sys, numpy as np, onnxruntime
from clada.plugins.onnxruntime import register
options = onnxruntime.SessionOptions()
register(options, weights=sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options)
feeds = {i.name: np.ones([d if isinstance(d, int) else 1 for d in i.shape], {"tensor(float)": np.float32,
         "tensor(bool)": np.bool_}[i.type]) for i in session.get_inputs()}
session.run(None, feeds)
lines = dict(line.split(":") for line in open("/proc/self/status") if "Rss" in line)
print(sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssFile")) / 1024)
"""


def weights_model(path: Path, dtype: str, width: int = 1024, neurons: int = 8192) -> Path:
    """One gated FFN whose weights are initializers in a file beside it, as the exporter writes them."""
    model = body_model(SPARSE_GATED_FFN, dtype, {"activation": "silu"}, 20)
    sizes = {"F": neurons, "D": width}
    rng = np.random.default_rng(0)
    for value in list(model.graph.input):
        shape = [sizes.get(d.dim_param, 0) for d in value.type.tensor_type.shape.dim]
        if value.name.startswith("w_"):
            weight = (rng.standard_normal(shape) / 32).astype(dtype)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
            model.graph.input.remove(value)
        else:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    return path


def test_a_weight_is_in_memory_once(tmp_path):
    """96 MB of float32 weights: as they are, they take that much; as bfloat16, half, and their original nothing."""
    path = weights_model(tmp_path / "model.onnx", "float32")

    def resident(*arguments: str) -> float:
        program = [sys.executable, "-c", MEMORY_PROGRAM, *arguments]
        return float(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    small = weights_model(tmp_path / "small.onnx", "float32", neurons=64)
    without = resident(str(small), "")
    assert resident(str(path), "") - without < 1.1 * 96
    assert resident(str(path), "bfloat16") - without < 1.15 * 48


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package, with the kernels, that a test may damage; a subprocess finds it and not the real one."""
    site = tmp_path / "site"
    copy = Path(shutil.copytree(ROOT / "clada", site / "clada"))
    shutil.copy(library_path(), copy / "plugins" / "onnxruntime")
    # The finder of an editable installation comes before every path.
    ours_only = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]\n"
    (site / "sitecustomize.py").write_text(ours_only)
    return copy


GENERATE = """
import sys
from clada.runtime import GenerationConfig, Session
session = Session(sys.argv[1], threads=1)
for _ in range(2):
    print(len(session.generate("def f(", GenerationConfig(max_new_tokens=3))[0].tokens), session.kernels)
    session.generate(["a", "b"], GenerationConfig(max_new_tokens=3))
"""


def run_with(package: Path, artifact: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    program = [sys.executable, "-c", GENERATE, str(artifact)]
    return subprocess.run(program, capture_output=True, text=True, check=True, env=environment, cwd=package.parent)


def test_without_a_library_the_session_says_so_once_and_runs(package, tiny_artifact):
    next(package.rglob("libclada_onnxruntime.so")).unlink()
    result = run_with(package, tiny_artifact)
    assert result.stdout == "3 function bodies\n" * 2
    assert result.stderr.count("the function bodies run instead of the native kernels, at dense speed") == 1
    assert "this installation of clada has no native kernels" in result.stderr
    assert "set CLADA_ONNXRUNTIME_INCLUDE" in result.stderr


def test_a_library_for_another_processor_is_named(package, tiny_artifact):
    library = next(package.rglob("libclada_onnxruntime.so"))
    content = bytearray(library.read_bytes())
    content[18:20] = (243).to_bytes(2, sys.byteorder)  # e_machine: RISC-V
    library.write_bytes(content)
    result = run_with(package, tiny_artifact)
    assert result.stdout == "3 function bodies\n" * 2
    assert result.stderr.count("the native kernels cannot be used: ") == 1
    assert "libclada_onnxruntime.so" in result.stderr
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    inspect = [sys.executable, "-m", "clada.runtime.cli", "inspect", str(tiny_artifact)]
    assert subprocess.run(inspect, capture_output=True, text=True, check=True, env=environment).returncode == 0


def test_a_library_for_a_newer_onnxruntime_says_so():
    """The library is loaded as by a release that supports no version of the API after 19."""
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)
    messages, version = [], ctypes.create_string_buffer(b"1.19.2")
    # CreateStatus is the first function of every version.
    api = (create_status * 1)(create_status(lambda _, message: messages.append(message) or 1))
    functions = [
        get_api(lambda asked: ctypes.addressof(api) if asked < 20 else None),
        get_version(lambda: ctypes.addressof(version)),
    ]
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))
    library = ctypes.CDLL(str(library_path()))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, base) == 1
    assert messages == [b"the native kernels of clada need ONNX Runtime 1.20 or newer; this is 1.19.2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int7"}, "clada.weights is 'int7'; it may be empty or bfloat16"),
        ({"instructions": "mmx"}, "clada.instructions is 'mmx', which is not known"),
    ],
)
def test_unknown_settings_are_refused(options, message):
    with pytest.raises(CladaError, match=message):
        register(onnxruntime.SessionOptions(), **options)


def load_native(model: onnx.ModelProto, **options: Any) -> onnxruntime.InferenceSession:
    del model.functions[:]
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 4
    register(session_options, **options)
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options)


@pytest.mark.skipif("avx2" not in INSTRUCTIONS, reason="this processor has no AVX2")
def test_sessions_of_one_process_differ_in_exactness():
    """AVX2 rounds to bytes what it multiplies 4-bit weights with, where it may."""
    case = next(case for case in QUANTIZED_LINEAR.cases() if case.attributes["bits"] == 4 and "mixed" in case.name)
    names = [spec.name for spec in QUANTIZED_LINEAR.inputs]
    given = dict(zip(names, cast(QUANTIZED_LINEAR, case, "float32")[1], strict=True))
    results = []
    for exact in (True, False, True):
        model = body_model(QUANTIZED_LINEAR, "float32", case.attributes, 20)
        make_constant(model, given)
        session = load_native(model, instructions="avx2", exact=exact)
        results.append(session.run(["y"], {value.name: given[value.name] for value in session.get_inputs()})[0])
    np.testing.assert_array_equal(results[0], results[2])
    assert 0 < np.abs(results[1] - results[0]).max() < 2e-2 * np.abs(results[0]).max()


def test_bfloat16_weights_need_float32_constants(tmp_path):
    model = body_model(SPARSE_GATED_FFN, "float32", {"activation": "silu"}, 20)
    with pytest.raises(Exception, match="needs constant weights, and w_gate is not constant"):
        load_native(model, weights="bfloat16")
    half = onnx.load(weights_model(tmp_path / "half.onnx", "float16", 16, 16))
    with pytest.raises(Exception, match="weights=bfloat16 is for float32 models"):
        load_native(half, weights="bfloat16")


def quantized_model(**changes: np.ndarray) -> onnx.ModelProto:
    """The gated op with 4-bit weights as constants, some of them others."""
    op = QUANTIZED[SPARSE_GATED_FFN.name]
    case, inputs = cast(op, case_of(op, "int4-block32-silu-mixed-B1-S1"), "float32")
    model = body_model(op, "float32", case.attributes, 20)
    make_constant(model, dict(zip((spec.name for spec in op.inputs), inputs, strict=True)) | changes)
    return model


def scales_with(value: float) -> np.ndarray:
    scales = np.ones((37, 3), np.float16)
    scales[5, 2] = value
    return scales


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s_gate": scales_with(0)}, "QuantizedSparseGatedFFN: s_gate has a scale that is zero, in row 5; export the"),
        ({"s_up": scales_with(np.inf)}, "s_up has a scale that is infinite, in row 5"),
        ({"s_down": scales_with(np.nan)}, "s_down has a scale that is NaN, in row 5"),
        ({"w_up": np.zeros((37, 40), np.int8)}, "w_up: block_size 32 does not divide the width D=80"),
        ({"w_up": np.zeros((37, 64), np.int8)}, "3 scales a row do not fit D=128 in blocks of 32"),
        ({"w_up": np.zeros((36, 48), np.int8)}, "w_up and s_up are not matrices of the same rows"),
        (
            {"w_up": np.zeros((37, 64), np.int8), "s_up": np.ones((37, 4), np.float16)},
            "w_up has not the size of w_gate",
        ),
    ],
)
def test_quantized_weights_that_do_not_fit_are_named(changes, message):
    with pytest.raises(Exception, match=message):
        load_native(quantized_model(**changes))


def quantized_linear_model(**changes: np.ndarray) -> onnx.ModelProto:
    """The linear op with 4-bit weights of 96 outputs as constants, some of them others."""
    case, inputs = cast(QUANTIZED_LINEAR, case_of(QUANTIZED_LINEAR, "int4-block32-mixed-B1-S1"), "float32")
    model = body_model(QUANTIZED_LINEAR, "float32", case.attributes, 20)
    make_constant(model, dict(zip((spec.name for spec in QUANTIZED_LINEAR.inputs), inputs, strict=True)) | changes)
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s": scales_with(0)}, "QuantizedSparseLinear: s has a scale that is zero, in row 5; export the"),
        ({"s": scales_with(np.inf)}, "s has a scale that is infinite, in row 5"),
        ({"s": scales_with(np.nan)}, "s has a scale that is NaN, in row 5"),
        ({"w": np.zeros((37, 40), np.int8)}, "w: block_size 32 does not divide the width N=80"),
        ({"w": np.zeros((37, 64), np.int8)}, "3 scales a row do not fit N=128 in blocks of 32"),
        ({"w": np.zeros((36, 48), np.int8)}, "w and s are not matrices of the same rows"),
        ({"w": np.zeros((37, 2, 24), np.int8)}, "w and s are not matrices of the same rows"),
    ],
)
def test_quantized_matrices_that_do_not_fit_are_named(changes, message):
    with pytest.raises(Exception, match=message):
        load_native(quantized_linear_model(**changes))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (1, 1, 36), r"w has shape \[37, 48\], expected \[D=36, P\]"),
        ("x", (1, 37), r"x has shape \[1, 37\], expected \[B, S, D\]"),
        ("threshold", (36,), r"threshold has shape \[36\], expected \[D=37\]"),
        ("scale", (1, 2), r"scale has shape \[1, 2\], expected \[B=1, S=1\]"),
    ],
)
def test_inputs_that_do_not_fit_quantized_matrices_are_named(name, shape, message):
    model = quantized_linear_model()
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    session = load_native(model)
    shapes = {"x": (1, 1, 37), "threshold": (37,), "scale": (1, 1), name: shape}
    with pytest.raises(Exception, match=f"QuantizedSparseLinear: {message}"):
        session.run(None, {key: np.zeros(sizes, np.float32) for key, sizes in shapes.items()})


def test_a_quantized_matrix_is_constant_and_stays_quantized():
    model = body_model(QUANTIZED_LINEAR, "float32", {"bits": 4, "block_size": 32}, 20)
    with pytest.raises(Exception, match="needs constant weights, and w is not constant"):
        load_native(model)
    with pytest.raises(Exception, match="weights=bfloat16 is for float32 models, and this one is quantized"):
        load_native(quantized_linear_model(), weights="bfloat16")


def test_quantized_weights_are_constant_and_stay_quantized():
    op = QUANTIZED[SPARSE_GATED_FFN.name]
    model = body_model(op, "float32", {"bits": 4, "block_size": 32, "activation": "silu"}, 20)
    with pytest.raises(Exception, match="needs constant weights, and w_gate is not constant"):
        load_native(model)
    with pytest.raises(Exception, match="weights=bfloat16 is for float32 models, and this one is quantized"):
        load_native(quantized_model(), weights="bfloat16")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("bits", "bits is 5; it may be 4,8"), ("block_size", "block_size is 5; it may be 32,128")],
)
def test_unknown_quantization_is_named(attribute, message):
    model = quantized_model()
    next(a for a in model.graph.node[0].attribute if a.name == attribute).i = 5
    with pytest.raises(Exception, match=message):
        load_native(model)


def test_an_op_version_that_is_not_known_is_refused():
    model = body_model(SPARSE_GATED_FFN, "float32", {"activation": "silu"}, 20)
    next(a for a in model.graph.node[0].attribute if a.name == "plugin_version").s = b"2"
    with pytest.raises(Exception, match="SparseGatedFFN has version 2, and the native kernels know 1"):
        load_native(model)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("w_up", (5, 24), r"SparseGatedFFN: w_up has shape \[5, 24\], expected \[F=37, D=24\]"),
        ("pool", (2, 37), r"SparseGatedFFN: pool has shape \[2, 37\], expected \[B=1, F=37\]"),
        ("threshold", (36,), r"SparseGatedFFN: threshold has shape \[36\], expected \[F=37\]"),
    ],
)
def test_wrong_sizes_are_named(name, shape, message):
    _, inputs = cast(SPARSE_GATED_FFN, case_of(SPARSE_GATED_FFN, "silu-mixed-B1-S2"), "float32")
    feeds = {spec.name: a for spec, a in zip(SPARSE_GATED_FFN.inputs, inputs, strict=True)}
    feeds[name] = np.zeros(shape, feeds[name].dtype)
    session = load_native(body_model(SPARSE_GATED_FFN, "float32", {"activation": "silu"}, 20))
    with pytest.raises(Exception, match=message):
        session.run(None, feeds)


def test_a_token_outside_the_vocabulary_is_named():
    _, inputs = cast(LOAD_SIGNAL, case_of(LOAD_SIGNAL, "B3-V7-spread4.0"), "float32")
    feeds = {spec.name: a for spec, a in zip(LOAD_SIGNAL.inputs, inputs, strict=True)}
    feeds["token"] = np.array([0, 9, 1])
    session = load_native(body_model(LOAD_SIGNAL, "float32", {"surprisal_weight": 0.5}, 20))
    with pytest.raises(Exception, match="token 9 of row 1 is not in the vocabulary of 7"):
        session.run(None, feeds)


def test_a_bfloat16_model_has_kernels():
    """No session feeds bfloat16 through NumPy; that the graph loads shows that each op has a kernel for it."""
    for op, attributes in ((SPARSE_GATED_FFN, {"activation": "silu"}), (LOAD_SIGNAL, {"surprisal_weight": 0.5})):
        model = body_model(op, "float32", attributes, 20)
        for value in [*model.graph.input, *model.graph.output]:
            spec = next(s for s in (*op.inputs, *op.outputs) if s.name == value.name)
            if spec.dtype == "T":
                value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
        load_native(model)


def test_a_graph_that_the_kernels_refuse_runs_on_its_bodies(tiny_artifact, tmp_path):
    """The library loads, and its kernels do not know the graph's ops: that is said, and the bodies serve."""
    for file in tiny_artifact.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / tiny_artifact.name
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "plugin_version":
                attribute.s = b"2"
    path.write_bytes(model.SerializeToString())
    with pytest.warns(UserWarning, match="function bodies run instead of the native kernels.* has version 2"):
        assert OnnxRuntimeModel(path).kernels == "function bodies"
    with pytest.raises(CladaError, match="has version 2, and the native kernels know 1"):
        OnnxRuntimeModel(path, Execution(kernels="native"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "threads is -1"),
        ({"kernels": "fast"}, "kernels is 'fast'; it must be one of auto, native, bodies"),
        ({"weights": "int7"}, "weights is 'int7'"),
        ({"weights": "bfloat16", "kernels": "bodies"}, "weights=bfloat16 needs the native kernels"),
    ],
)
def test_unknown_ways_to_run_are_refused(tiny_artifact, options, message):
    with pytest.raises(CladaError, match=message):
        Session(tiny_artifact, **options)
