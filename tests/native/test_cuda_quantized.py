"""The CUDA kernels of the quantized ops in the host emulation, as test_cuda_kernels.py has the others."""

import numpy as np
import pytest

from clada.ops import QUANTIZED_FFN
from clada.ops.block_quantization import BITS, BLOCK_SIZES, dequantize, pack
from clada.ops.quantized_matrices import scales_name
from clada.ops.record import FLOAT_TYPES, Array
from tests.native import cuda_kernels_c
from tests.native.cases import QUANTIZED_FFN_CASES, dense_case, large_case
from tests.native.cuda_kernels_c import ROWWISE_TOKENS, RUNS
from tests.native.test_cuda_kernels import check_ffn, run_ffn, sequences
from tests.support.exhaustive import in_turn

FORMATS = [(bits, block) for bits in BITS for block in BLOCK_SIZES]
GATED, PLAIN = QUANTIZED_FFN.values()
formats = pytest.mark.parametrize("quantization", FORMATS, ids=lambda q: f"int{q[0]}-block{q[1]}")
every_bits = pytest.mark.parametrize("bits", BITS)


@pytest.mark.parametrize(("op", "case"), QUANTIZED_FFN_CASES)
def test_matches_reference(op, case):
    for element in FLOAT_TYPES:
        check_ffn(op, case, element)


# One block and a part of a load; parts of a span, whole spans, and more than one staged part of x; many windows.
WIDTHS = [(32, 33), (96, 17), (896, 20), (1056, 40), (2048, 20), (4224, 20), (64, 4200)]


@every_bits
@pytest.mark.parametrize("sizes", WIDTHS, ids=str)
def test_sizes_past_every_block(sizes, bits):
    width, neurons = sizes
    block = 128 if width % 128 == 0 else 32
    op, element = (PLAIN, "float16") if neurons % 2 else (GATED, "float32")
    check_ffn(op, large_case(op, 1, 1, width, neurons, element=element, quantization=(bits, block)), element)


@every_bits
@pytest.mark.parametrize("batch", range(2, 9))
def test_every_batch_has_pools_of_its_own(batch, bits):
    """With more columns than are staged of 8 tokens at a time, and rows that do not start at a whole vector."""
    element = FLOAT_TYPES[batch % 3]
    for op, offset in ((GATED, 0), (PLAIN, 2)):
        case = large_case(op, batch, 1, 544, 50, element=element, quantization=(bits, 32))
        check_ffn(op, case, element, offset=offset)


@formats
@pytest.mark.parametrize(("element_offset", "element"), in_turn([1, 4, 7], FLOAT_TYPES))
def test_every_misalignment(element_offset, quantization, element):
    """Of x, codes and scales alike."""
    case = large_case(GATED, 1, 2, 256, 33, element=element, quantization=quantization)
    check_ffn(GATED, case, element, offset=2 * element_offset)


@pytest.mark.parametrize(
    ("quantization", "called"),
    in_turn(FORMATS, [(PLAIN, "float32"), *((GATED, element) for element in FLOAT_TYPES)]),
    ids=lambda pair: "-".join(str(getattr(value, "name", value)) for value in pair),
)
def test_many_tokens_are_products_of_matrices(quantization, called):
    op, element = called
    case = large_case(op, 2, 7, 384, 60, element=element, quantization=quantization)
    # Half types round the weights and products that are selected by.
    check_ffn(op, case if element == "float32" else dense_case(case), element, offset=2)


def test_matrices_larger_than_a_piece():
    """Matrices dequantized rows after rows, or columns after columns; the workspace does not grow with them."""
    op = PLAIN
    case = large_case(op, 1, ROWWISE_TOKENS + 1, 256, 33000, quantization=(4, 32))
    y, active, score = cuda_kernels_c.sparse_ffn(op, case.inputs, case.attributes)
    wide = {
        name: dequantize(case.inputs[name], case.inputs[scales_name(name)].astype(np.float32), 4)
        for name in ("w_in", "w_out")
    }
    z = case.inputs["x"][0] @ wide["w_in"].T + case.inputs["b_in"]
    a = z / (1 + np.exp(-z))
    scale = case.inputs["scale"][0, :, None]
    kept = case.inputs["pool"] & (scale >= 0) & (np.abs(a) >= scale * case.inputs["threshold"])
    h = np.where(kept, a, 0)
    expected = h @ wide["w_out"] + case.inputs["b_out"]
    np.testing.assert_array_equal(active[0], kept.sum(axis=1))
    np.testing.assert_allclose(y[0], expected, atol=1e-4 * np.abs(expected).max())
    assert np.isfinite(score).all()
    bytes_of_h = (ROWWISE_TOKENS + 1) * 33000 * 4
    piece = 32 << 20
    assert cuda_kernels_c.sparse_ffn_workspace(op, case.inputs, case.attributes) < bytes_of_h + piece + 1024


@formats
def test_every_code_and_negative_scales_are_exact(quantization):
    """One neuron and an x of one 1: y is the weight itself, of which float32 rounds nothing."""
    bits, block = quantization
    width = 256
    codes = np.resize(np.arange(-(1 << (bits - 1)), 1 << (bits - 1), dtype=np.int8), (1, width))
    scales = np.float16([[(-1) ** i * 1.2345 * 10.0 ** (3 * (i % 3) - 4) for i in range(width // block)]])
    ones = {"w": pack(np.ones_like(codes), bits), "s": np.ones_like(scales)}
    row = {"w": pack(codes, bits), "s": scales}
    weights = (codes.reshape(-1, block) * scales.reshape(-1, 1).astype(np.float64)).reshape(-1)

    def y(inward: dict[str, Array], outward: dict[str, Array], x: Array) -> Array:
        inputs = {"x": x.reshape(1, 1, width), "w_in": inward["w"], "s_in": inward["s"]}
        inputs |= {"w_out": outward["w"], "s_out": outward["s"]}
        inputs |= {"b_in": np.zeros(1, np.float32), "b_out": np.zeros(width, np.float32)}
        inputs |= {"threshold": np.zeros(1, np.float32), "scale": np.zeros((1, 1), np.float32)}
        inputs["pool"] = np.ones((1, 1), np.bool_)
        attributes = {"bits": bits, "block_size": block, "activation": "relu"}
        return cuda_kernels_c.sparse_ffn(PLAIN, inputs, attributes)[0].reshape(-1)

    units = np.eye(width, dtype=np.float32)
    np.testing.assert_array_equal(y(ones, row, units[0]), weights)
    # A ReLU shows one sign of a weight at a time.
    for column in range(0, width, 7):
        for unit in (units[column], -units[column]):
            assert y(row, ones, unit)[0] == max(0, unit[column] * weights[column])


@sequences
def test_scales_of_neurons_that_are_not_kept_are_not_used(sequence):
    """Row by row they are not even read: NaN there changes nothing."""
    case = large_case(GATED, 1, sequence, 64, 100, quantization=(4, 32))
    case.inputs["scale"][:] = 0
    plain = run_ffn(GATED, case)
    outside = ~case.inputs["pool"][0]
    for name in ("s_gate", "s_up", "s_down") if sequence <= ROWWISE_TOKENS else ("s_gate", "s_up"):
        case.inputs[name][outside] = np.nan
    for a, b in zip(plain, run_ffn(GATED, case), strict=True):
        np.testing.assert_array_equal(a, b)


@sequences
def test_a_scale_that_is_no_number_shows(sequence):
    case = large_case(PLAIN, 1, sequence, 64, 30, quantization=(8, 32))
    case.inputs["pool"][:], case.inputs["scale"][:] = True, 0
    case.inputs["s_out"][3, 1] = np.nan
    y, *_ = run_ffn(PLAIN, case)
    assert np.isnan(y[0, :, 32:]).all()
    assert np.isfinite(y[0, :, :32]).all()


@sequences
@every_bits
def test_what_is_launched_depends_on_sizes_alone(sequence, bits):
    case = large_case(GATED, 2, sequence, 128, 100, quantization=(bits, 128))
    nothing = {**case.inputs, "scale": -1 - 0 * case.inputs["scale"], "pool": ~np.isfinite(case.inputs["pool"])}
    seen = []
    for inputs in (case.inputs, nothing):
        cuda_kernels_c.launches()
        cuda_kernels_c.sparse_ffn(GATED, inputs, case.attributes)
        seen.append(cuda_kernels_c.launches())
    assert seen[0] and seen[0] == seen[1]


def test_runs_differ():
    """The runs that must give the same bits differ in order and in garbage."""
    assert len({run.order for run in RUNS}) == len({run.garbage for run in RUNS}) == len(RUNS) > 2


def test_what_cannot_be_computed_is_an_invalid_value():
    invalid_value = 1
    case = large_case(GATED, 1, 1, 96, 4, quantization=(4, 32))

    def error(without: str | None = None, **attributes: int) -> int:
        return cuda_kernels_c.sparse_ffn_error(
            GATED, case.inputs, {**case.attributes, **attributes}, "float32", without
        )

    assert error() == 0
    # A type for plain weights says nothing of codes.
    assert cuda_kernels_c.sparse_ffn_error(GATED, case.inputs, case.attributes, "float16") == 0
    assert error(bits=5) == invalid_value
    # The first does not divide the width, and no kernel has blocks of the others.
    for block in (128, 96, 16, 0, -32):
        assert error(block_size=block) == invalid_value
    for pointer in ("s_in", "s_up", "s_out"):
        assert error(pointer) == invalid_value
    many = large_case(GATED, 1, ROWWISE_TOKENS + 1, 96, 4, quantization=(4, 32))
    assert cuda_kernels_c.sparse_ffn_error(GATED, many.inputs, many.attributes) == invalid_value
