"""Sizes and booleans that a hostile or an odd file may pass to the kernels of every device, sizes of 0 included."""

import itertools

import numpy as np
import pytest

from clada.ops import LOAD_SIGNAL, QUANTIZED, SPARSE_FFN, SPARSE_GATED_FFN
from clada.ops.record import Array, Case, Op
from tests.native import cuda_kernels_c, kernels_c
from tests.native.cases import check_outputs, large_case, rounded_case
from tests.native.test_kernels import ALL_INSTRUCTIONS

INVALID_VALUE = 1
INSTRUCTIONS = [name for name in ALL_INSTRUCTIONS if kernels_c.available(name)]
FORMATS = (None, (4, 32), (8, 128))
formats = pytest.mark.parametrize("quantization", FORMATS, ids=str)
ffn_ops = pytest.mark.parametrize("op", [SPARSE_GATED_FFN, SPARSE_FFN], ids=lambda op: op.name)
# A device's kernels of a feed-forward op.
DEVICES = {
    **{
        name: lambda *given, name=name, **options: kernels_c.sparse_ffn(*given, instructions=name, **options)
        for name in INSTRUCTIONS
    },
    "cuda": lambda op, inputs, attributes, weight_element="float32", **options: cuda_kernels_c.sparse_ffn(
        op, inputs, attributes, **options
    ),
}
devices = pytest.mark.parametrize("device", DEVICES)


def check(device: str, op: Op, case: Case, element: str = "float32") -> None:
    """Outputs come filled with NaN and -1, so that elements a kernel omits are detected."""
    case = rounded_case(case, element, element)
    outputs = DEVICES[device](op, case.inputs, case.attributes, element=element, weight_element=element)
    rounded_products = device == "cuda" and case.inputs["scale"].size > cuda_kernels_c.ROWWISE_TOKENS
    check_outputs(op, case, outputs, element, rounded_products)


def bytes_for(pool: Array, rng: np.random.Generator) -> Array:
    """Booleans that are true by any byte but 0."""
    return (pool * rng.integers(1, 256, pool.shape)).astype(np.uint8).view(np.bool_)


@pytest.mark.fault("native", "a batch, text, width or layer of no size", now="empty outputs, or zeros and biases")
@devices
@formats
@ffn_ops
def test_every_size_may_be_0(op, quantization, device, record_property):
    """Up to and beyond the number of tokens from which products of matrices are made."""
    widths = (0, quantization[1]) if quantization else (0, 5)
    shapes = [shape for shape in itertools.product((0, 1, 3), (0, 1, 12), widths, (0, 1, 19)) if 0 in shape]
    for shape in shapes:
        case = large_case(op, *shape, quantization=quantization)
        check(device, QUANTIZED[op.name] if quantization else op, case)
    record_property("cases", len(shapes))


@pytest.mark.fault("native", "booleans of a pool that are neither 0 nor 1", now="each counts as one neuron")
@devices
@formats
@ffn_ops
@pytest.mark.parametrize("tokens", [1, 40])
def test_any_byte_but_0_is_true(op, tokens, quantization, device):
    case = large_case(op, 1, tokens, 256, 300, quantization=quantization)
    given = QUANTIZED[op.name] if quantization else op
    plain, odd = (
        DEVICES[device](given, {**case.inputs, "pool": pool}, case.attributes)
        for pool in (case.inputs["pool"], bytes_for(case.inputs["pool"], np.random.default_rng(0)))
    )
    for first, second in zip(plain, odd, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.fault("native", "random sizes, pools and types", now="the reference's outputs, no access out of bounds")
@devices
def test_any_sizes(device, record_property):
    rng = np.random.default_rng(0)
    cases = 60
    for _ in range(cases):
        op = (SPARSE_GATED_FFN, SPARSE_FFN)[rng.integers(2)]
        quantization = FORMATS[rng.integers(3)]
        batch, sequence, width, neurons = (int(rng.integers(high)) for high in (5, 18, 70, 300))
        if quantization:
            width = width % 5 * quantization[1]
        element = ("float32", "float16", "bfloat16")[rng.integers(3)]
        # Half types round the products that many tokens are selected by on a GPU.
        if device == "cuda" and batch * sequence > cuda_kernels_c.ROWWISE_TOKENS:
            element = "float32"
        case = large_case(op, batch, sequence, width, neurons, element=element, quantization=quantization)
        case.inputs["pool"][...] = bytes_for(case.inputs["pool"], rng)
        check(device, QUANTIZED[op.name] if quantization else op, case, element)
    record_property("cases", cases)


def signal_inputs(batch: int, vocabulary: int, knots: int, scale_knots: int) -> dict[str, Array]:
    rng = np.random.default_rng([batch, vocabulary, knots, scale_knots])
    return {
        "logits": rng.standard_normal((batch, vocabulary)).astype(np.float32),
        "token": rng.integers(0, max(1, vocabulary), batch),
        "surprisal_knots": np.arange(knots, dtype=np.float32),
        "entropy_knots": np.arange(knots, dtype=np.float32),
        "scale_knots": np.linspace(1.25, 0.75, scale_knots, dtype=np.float32),
    }


@pytest.mark.fault("native", "no texts, or no vocabulary, in LoadSignal", now="no outputs, or a token that is refused")
@pytest.mark.parametrize("instructions", [name for name in INSTRUCTIONS if "vnni" not in name])
def test_a_load_signal_of_nothing(instructions):
    for vocabulary in (0, 1, 9):
        result, outputs = kernels_c.load_signal(signal_inputs(0, vocabulary, 5, 3), 0.5, instructions=instructions)
        assert result == 0
        assert [out.shape for out in outputs] == [(0,)] * 4
    assert kernels_c.load_signal(signal_inputs(2, 0, 5, 3), 0.5, instructions=instructions)[0] == 1
    _, (scale, *_) = kernels_c.load_signal(signal_inputs(2, 9, 2, 1), 0.5, instructions=instructions)
    assert scale.tolist() == [1.25, 1.25]


@pytest.mark.fault("native", "no texts, vocabulary or knots in LoadSignal on a GPU", now="no outputs, NaN, or refused")
def test_a_load_signal_of_nothing_on_cuda():
    for vocabulary in (0, 1, 9):
        outputs = cuda_kernels_c.load_signal(signal_inputs(0, vocabulary, 5, 3), 0.5)
        assert [out.shape for out in outputs] == [(0,)] * 4
    assert np.isnan(cuda_kernels_c.load_signal(signal_inputs(2, 0, 5, 3), 0.5)).all()
    assert cuda_kernels_c.load_signal(signal_inputs(2, 9, 2, 1), 0.5)[0].tolist() == [1.25, 1.25]
    for knots, scale_knots in ((0, 3), (1, 3), (5, 0)):
        assert cuda_kernels_c.load_signal_error(signal_inputs(2, 9, knots, scale_knots)) == INVALID_VALUE


@pytest.mark.fault("native", "sizes that are negative or beyond what is counted, on a GPU", now="an invalid value")
@pytest.mark.parametrize("name", ["batch", "sequence", "width", "neurons"])
@pytest.mark.parametrize("size", [-1, 2**31, 2**62])
def test_sizes_that_cannot_be_are_refused_on_cuda(name, size):
    inputs = large_case(SPARSE_FFN, 1, 1, 8, 4).inputs
    error = cuda_kernels_c.sparse_ffn_error(SPARSE_FFN, inputs, {"activation": "silu"}, sizes={name: size})
    assert error == INVALID_VALUE


@pytest.mark.fault("native", "sizes of LoadSignal that are negative or beyond what is counted, on a GPU", now="refused")
@pytest.mark.parametrize("name", ["batch", "vocabulary"])
@pytest.mark.parametrize("size", [-1, 2**62])
def test_sizes_of_a_load_signal_that_cannot_be_are_refused_on_cuda(name, size):
    assert cuda_kernels_c.load_signal_error(signal_inputs(1, 9, 5, 3), {name: size}) == INVALID_VALUE


def test_the_record_says_how_many_knots_there_are_at_least():
    """Minimum sizes that the tests above assume."""
    assert [spec.least for spec in LOAD_SIGNAL.inputs] == [0, 0, 2, 2, 1]
