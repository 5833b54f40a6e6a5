"""CachedAttention, natively and by its body, against its float64 reference."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest

from clada.errors import CladaError
from clada.ops import CACHED_ATTENTION as OP
from clada.ops.record import Case, evaluate
from clada.plugins.onnxruntime import register
from tests.ops.test_ops import cast
from tests.support.op_backends import FILE_BACKENDS, INSTRUCTIONS, body_model, run_onnxruntime

CASES = {case.name: case for case in OP.cases()}


@pytest.mark.parametrize("backend", FILE_BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, backend):
    case, inputs = cast(OP, case, dtype)
    outputs = FILE_BACKENDS[backend](OP, inputs, case.attributes)
    expected = evaluate(OP, case)
    text = case.inputs["last"][0] + 1
    for spec, out, right in zip(OP.outputs, outputs, expected, strict=True):
        assert str(out.dtype) == dtype
        assert out.shape == right.shape
        # What is beyond the text is nobody's.
        of_text = slice(None) if spec.name == "y" else np.s_[:, :, :text]
        bound = OP.tolerance[dtype] * np.abs(right[of_text]).max()
        assert np.abs(out[of_text] - right[of_text]).max() <= bound, spec.name


@pytest.mark.parametrize("name", ["14x64-halves-1-after-700", "14x64-halves-150-after-0"])
def test_sums_are_the_same_on_any_number_of_threads(name):
    inputs = cast(OP, CASES[name], "float32")[1]
    model = body_model(OP, "float32", CASES[name].attributes, 20)
    one, *others = [run_onnxruntime(model, OP, inputs, INSTRUCTIONS[0], threads)[0] for threads in (1, 2, 3)]
    assert all(np.array_equal(one, other) for other in others)


def loaded(case: Case) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    register(options)
    model = body_model(OP, "float32", case.attributes, 20)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_a_cache_bound_twice_is_written_in_place():
    case = CASES["14x64-halves-1-after-700"]
    inputs = dict(zip((spec.name for spec in OP.inputs), cast(OP, case, "float32")[1], strict=True))
    session = loaded(case)
    binding = session.io_binding()
    caches = {name: onnxruntime.OrtValue.ortvalue_from_numpy(inputs[f"past_{name}"]) for name in ("key", "value")}
    for name, cache in caches.items():
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)
    for name in ("qkv", "cos", "sin", "last", "total"):
        binding.bind_cpu_input(name, inputs[name])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    y, key, value = evaluate(OP, case)
    assert np.abs(binding.copy_outputs_to_cpu()[-1] - y).max() < 1e-5
    assert np.abs(caches["key"].numpy() - key).max() < 1e-5
    assert np.abs(caches["value"].numpy() - value).max() < 1e-5


_CASE = CASES["14x64-halves-1-after-0"]
_MISTAKES = {
    "the cache is full": ({"last": np.array([64], np.int32)}, {}, "the last of 1 tokens is at 64 of a cache with room"),
    "a place before the text": ({"last": np.array([-1], np.int32)}, {}, "the last of 1 tokens is at -1"),
    "heads that do not fit": ({}, {"num_heads": 12}, "qkv is 1152 wide, which is not 12 + 2 * 2 heads of 64"),
    "heads past all sizes": ({}, {"num_heads": 2**62}, "qkv is 1152 wide, which is not"),
    "heads that share unevenly": ({}, {"num_heads": 13}, "13 heads of queries do not share 2 of keys evenly"),
    "no heads": ({}, {"kv_num_heads": 0}, "14 heads of queries do not share 0 of keys evenly"),
    "a cache of other heads": ({}, {"kv_num_heads": 1}, "a cache of 2 heads, and kv_num_heads is 1"),
    "a window of nothing": ({}, {"local_window_size": 0}, "a window of 0 tokens"),
    "too few angles": ({"cos": np.ones((0, 32)), "sin": np.ones((0, 32))}, {}, "angles of 0 tokens and 32 pairs"),
    "angles wider than heads": ({"cos": np.ones((1, 40)), "sin": np.ones((1, 40))}, {}, "and 40 pairs do not fit"),
    "two texts": (
        {"qkv": np.ones((2, 1, 1152)), "last": np.zeros(2, np.int32)}
        | {name: np.ones((2, 2, 64, 64)) for name in ("past_key", "past_value")},
        {},
        "2 texts, and a cache in place is one text's",
    ),
    "no text": (
        {"qkv": np.ones((0, 1, 1152)), "last": np.zeros(0, np.int32)}
        | {name: np.ones((0, 2, 64, 64)) for name in ("past_key", "past_value")},
        {},
        "0 texts, and a cache in place is one text's",
    ),
    "a cache of no width": (
        {"qkv": np.ones((1, 1, 0))} | {name: np.ones((1, 2, 64, 0)) for name in ("past_key", "past_value")},
        {},
        "heads of 0 values",
    ),
}


@pytest.mark.parametrize(("inputs", "attributes", "message"), _MISTAKES.values(), ids=_MISTAKES)
def test_what_does_not_fit_is_refused(inputs, attributes, message):
    model = body_model(OP, "float32", {**_CASE.attributes, **attributes}, 20)
    given = {spec.name: inputs.get(spec.name, _CASE.inputs[spec.name]) for spec in OP.inputs}
    arrays = [
        a.astype(np.float32) if spec.dtype == "T" else a for spec, a in zip(OP.inputs, given.values(), strict=True)
    ]
    with pytest.raises(Exception, match=re.escape(message)):  # of ONNX Runtime's own kinds
        run_onnxruntime(model, OP, arrays, INSTRUCTIONS[0])


def test_no_new_token_changes_nothing():
    inputs = {"qkv": np.ones((1, 0, 1152)), "last": np.array([-1], np.int32)}
    given = {spec.name: inputs.get(spec.name, _CASE.inputs[spec.name]) for spec in OP.inputs}
    arrays = [
        a.astype(np.float32) if spec.dtype == "T" else a for spec, a in zip(OP.inputs, given.values(), strict=True)
    ]
    y, key, _ = run_onnxruntime(body_model(OP, "float32", _CASE.attributes, 20), OP, arrays, INSTRUCTIONS[0])
    assert y.shape == (1, 0, 896)
    assert key.shape == (1, 2, 64, 64)


def test_the_record_refuses_what_does_not_fit():
    with pytest.raises(CladaError, match="does not fit 12 heads of queries"):
        evaluate(OP, Case("", _CASE.inputs, {**_CASE.attributes, "num_heads": 12}))


def test_the_body_is_one_that_onnx_knows():
    onnx.checker.check_model(body_model(OP, "float32", _CASE.attributes, 23), full_check=True)
