"""The quantized SparseLinear's CUDA kernels in the host emulation, as test_cuda_linear.py has those of plain ones."""

import itertools

import numpy as np
import pytest

from clada.ops import QUANTIZED_LINEAR
from clada.ops.block_quantization import dequantize, pack
from clada.ops.record import FLOAT_TYPES, Array, Case
from tests.native import cuda_kernels_c
from tests.native.cases import large_linear_case
from tests.native.cuda_kernels_c import ROWWISE_TOKENS
from tests.native.test_cuda_kernels import sequences
from tests.native.test_cuda_linear import (
    INVALID_VALUE,
    check,
    check_launches,
    check_once,
    check_what_is_not_finite_shows,
    run,
)
from tests.native.test_cuda_quantized import FORMATS, every_bits, formats
from tests.support.exhaustive import in_turn


@pytest.mark.parametrize("case", list(QUANTIZED_LINEAR.cases()), ids=lambda case: case.name)
def test_matches_reference(case):
    for element in FLOAT_TYPES:
        check(case, element)


# One block and a part of a tile; a tile and a part of one, as one token has them and as several; products.
LARGE = [(1, 1, 70, 32), (1, 1, 70, 352), (8, 1, 70, 160), (5, 1, 70, 256), (2, 3, 17, 96), (2, 7, 300, 160)]


def fitting(quantization: tuple[int, int], outputs: int) -> int:
    """Outputs that are whole blocks, at least so many."""
    block = quantization[1]
    return -(-outputs // block) * block


@pytest.mark.parametrize(("sizes", "element"), in_turn(LARGE, FLOAT_TYPES), ids=str)
@formats
def test_sizes_past_every_block(quantization, sizes, element):
    *others, outputs = sizes
    check(large_linear_case(*others, fitting(quantization, outputs), quantization=quantization), element)


@every_bits
def test_more_inputs_than_fit_a_window(bits):
    check(large_linear_case(1, 1, 16_500, 32, quantization=(bits, 32)))


def test_more_inputs_than_a_block_takes():
    check_once(large_linear_case(5, 1, 1100, 32, quantization=(4, 32)))


@pytest.mark.parametrize(("batch", "quantization"), in_turn(range(1, 9), FORMATS), ids=str)
def test_every_batch(batch, quantization):
    for element in FLOAT_TYPES:
        check(large_linear_case(batch, 1, 40, 384, quantization=quantization), element)


@formats
@pytest.mark.parametrize(("element_offset", "element"), in_turn([1, 4, 7], FLOAT_TYPES))
def test_every_misalignment(element_offset, quantization, element):
    """Of x, codes and scales alike, with few tokens and with many."""
    for tokens in (2, ROWWISE_TOKENS + 1):
        case = large_linear_case(1, tokens, 33, 256, element=element, quantization=quantization)
        check(case, element, offset=2 * element_offset)


@formats
@pytest.mark.parametrize("element", FLOAT_TYPES)
def test_many_tokens_are_products_of_matrices(element, quantization):
    check(large_linear_case(2, 7, 60, 384, element=element, quantization=quantization), element)


def test_more_tokens_than_fit_a_chunk():
    check_once(large_linear_case(3, 343, 16, 64, quantization=(8, 32)))


def test_matrices_larger_than_a_piece():
    """Matrices dequantized columns after columns; the workspace does not grow with them."""
    inputs, tokens, width = 33_000, ROWWISE_TOKENS + 1, 320
    case = large_linear_case(1, tokens, inputs, width, quantization=(4, 32))
    y, kept = cuda_kernels_c.sparse_linear(case.inputs, quantization=(4, 32))
    x, scale = case.inputs["x"][0], case.inputs["scale"][0, :, None]
    keeps = (scale >= 0) & (x != 0) & (np.abs(x) >= scale * case.inputs["threshold"])
    wide = dequantize(case.inputs["w"], case.inputs["s"].astype(np.float32), 4)
    expected = np.where(keeps, x, 0).astype(np.float32) @ wide
    np.testing.assert_array_equal(kept[0], keeps.sum(axis=1))
    np.testing.assert_allclose(y[0], expected, atol=1e-4 * np.abs(expected).max())
    kept_x, piece = tokens * inputs * 4, 32 << 20
    assert inputs * width * 4 > piece
    assert cuda_kernels_c.sparse_linear_workspace(case.inputs, (4, 32)) < kept_x + piece + 1024


def test_a_vocabulary_whose_tiles_are_more_than_a_card_has_places():
    """The call is still cut into several splits."""
    inputs, outputs, every = 520, 65_568, 100
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (inputs, outputs), np.int8)
    s = rng.uniform(0.5, 2, (inputs, outputs // 32)).astype(np.float16)
    x = rng.standard_normal((1, 1, inputs)).astype(np.float32)
    x[..., np.arange(inputs) % every != 0] = 0
    given = {"x": x, "w": w, "s": s, "threshold": np.zeros(inputs, np.float32), "scale": np.zeros((1, 1), np.float32)}
    cuda_kernels_c.launches()
    y, kept = cuda_kernels_c.sparse_linear(given, quantization=(8, 32))
    expected = x[0, :, ::every] @ dequantize(w[::every], s[::every].astype(np.float32), 8)
    assert kept == len(w[::every])
    np.testing.assert_allclose(y[0], expected, atol=1e-5 * np.abs(expected).max())
    tiles = -(-outputs // 128)
    assert f"<<<({2 * tiles}, 1, 1), (256, 1, 1)>>>" in cuda_kernels_c.launches()[-1]


def weights_case(codes: Array, scales: Array, bits: int, block: int, tokens: int) -> Case:
    """One input, which is 1 and kept: y of each token is the weights themselves."""
    inputs = {"x": np.ones((1, tokens, 1)), "w": pack(codes, bits), "s": scales}
    inputs |= {"threshold": np.zeros(1, np.float32), "scale": np.zeros((1, tokens), np.float32)}
    return Case("weights", inputs, {"bits": bits, "block_size": block})


@sequences
@formats
def test_every_code_and_negative_scales_are_exact(quantization, sequence):
    bits, block = quantization
    outputs = 256
    codes = np.resize(np.arange(-(1 << (bits - 1)), 1 << (bits - 1), dtype=np.int8), (1, outputs))
    scales = np.float16([[(-1) ** i * 1.2345 * 10.0 ** (3 * (i % 3) - 4) for i in range(outputs // block)]])
    weights = (codes.reshape(-1, block) * scales.reshape(-1, 1).astype(np.float64)).reshape(-1)
    y, _ = run(weights_case(codes, scales, bits, block, sequence))
    np.testing.assert_array_equal(y[0], np.tile(weights, (sequence, 1)))


@pytest.mark.fault(
    "native", "a batch, text or matrix of no size in the quantized SparseLinear on a GPU", now="empty outputs, or zeros"
)
def test_every_size_may_be_0():
    for shape in itertools.product((0, 2), (0, 1, 12), (0, 5), (0, 128)):
        if 0 in shape:
            for quantization in FORMATS:
                check(large_linear_case(*shape, quantization=quantization))


@pytest.mark.fault(
    "native", "sizes of the quantized SparseLinear that are negative or beyond what is counted, on a GPU", now="refused"
)
@pytest.mark.parametrize("name", ["batch", "sequence", "width", "outputs"])
@pytest.mark.parametrize("size", [-32, 2**31, 2**62])
def test_sizes_that_cannot_be_are_refused(name, size):
    """Each is whole blocks."""
    inputs = large_linear_case(1, 1, 8, 32, quantization=(4, 32)).inputs
    assert cuda_kernels_c.sparse_linear_error(inputs, quantization=(4, 32), said={name: size}) == INVALID_VALUE


@pytest.mark.fault(
    "native", "bits, blocks and scales that no kernel of SparseLinear has, on a GPU", now="refused before any is read"
)
def test_what_cannot_be_computed_is_an_invalid_value():
    few, many = (large_linear_case(1, tokens, 8, 96, quantization=(4, 32)).inputs for tokens in (1, ROWWISE_TOKENS + 1))

    def error(inputs: dict[str, Array] = few, weight_element: str = "float32", **said: int | None) -> int:
        return cuda_kernels_c.sparse_linear_error(inputs, weight_element, (4, 32), said)

    assert error() == 0
    # A type for plain weights says nothing of codes.
    assert error(weight_element="float16") == 0
    assert error(many) == INVALID_VALUE
    for bits in (-4, 1, 5, 16):
        assert error(bits=bits) == INVALID_VALUE
    # The first does not divide the outputs, and no kernel has blocks of the others.
    for block in (128, 96, 16, 0, -32):
        assert error(block_size=block) == INVALID_VALUE
    assert error(outputs=95) == INVALID_VALUE
    assert error(s=None) == INVALID_VALUE


@sequences
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_kept_and_shows(value, sequence):
    """A weight of 0 times infinity is no number."""
    check_what_is_not_finite_shows(large_linear_case(1, sequence, 40, 128, quantization=(8, 32)), value)


@sequences
def test_a_scale_that_is_no_number_shows(sequence):
    case = large_linear_case(1, sequence, 30, 64, quantization=(8, 32))
    case.inputs["scale"][:] = 0
    case.inputs["s"][3, 1] = np.nan
    y, _ = run(case)
    assert np.isnan(y[0, :, 32:]).all()
    assert np.isfinite(y[0, :, :32]).all()


@every_bits
def test_rows_of_inputs_that_no_token_keeps_are_not_read(bits):
    """Scales of NaN there change nothing."""
    case = large_linear_case(1, 2, 300, 96, quantization=(bits, 32))
    case.inputs["scale"][:] = 1
    case.inputs["threshold"][:] = 0.7
    plain = run(case)
    dropped = (np.abs(case.inputs["x"][0]) < case.inputs["threshold"]).all(axis=0)
    assert 0.1 < dropped.mean() < 0.9
    case.inputs["s"][dropped] = np.nan
    for a, b in zip(plain, run(case), strict=True):
        np.testing.assert_array_equal(a, b)


@sequences
@every_bits
def test_what_is_launched_depends_on_sizes_alone(sequence, bits):
    check_launches(large_linear_case(2, sequence, 40, 128, quantization=(bits, 128)))


@pytest.mark.fault(
    "native", "random sizes, types and formats of the quantized SparseLinear on a GPU", now="the reference's outputs"
)
def test_any_sizes(record_property):
    rng = np.random.default_rng(0)
    cases = 20
    for _ in range(cases):
        batch, sequence, width, blocks = (int(rng.integers(high)) for high in (5, 12, 300, 4))
        quantization = FORMATS[rng.integers(len(FORMATS))]
        case = large_linear_case(batch, sequence, width, blocks * quantization[1], quantization=quantization)
        check(case, FLOAT_TYPES[rng.integers(3)])
    record_property("cases", cases)
