"""GatedActivation, natively and by its body, against its float64 reference."""

import numpy as np
import pytest

from clada.errors import CladaError
from clada.ops import GATED_ACTIVATION as OP
from clada.ops.record import Case, evaluate
from tests.ops.test_ops import cast
from tests.support.op_backends import FILE_BACKENDS, INSTRUCTIONS, body_model, run_onnxruntime

CASES = {case.name: case for case in OP.cases()}


@pytest.mark.parametrize("backend", FILE_BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, backend):
    case, inputs = cast(OP, case, dtype)
    (y,) = FILE_BACKENDS[backend](OP, inputs, case.attributes)
    (expected,) = evaluate(OP, case)
    assert str(y.dtype) == dtype
    assert y.shape == expected.shape
    assert np.abs(y - expected).max(initial=0) <= OP.tolerance[dtype] * np.abs(expected).max(initial=0)


def test_an_odd_width_is_refused():
    x = np.ones((1, 1, 7), np.float32)
    with pytest.raises(Exception, match="x is 7 wide, which is not twice a width"):  # of ONNX Runtime's own kinds
        run_onnxruntime(body_model(OP, "float32", {"activation": "silu"}, 20), OP, [x], INSTRUCTIONS[0])
    with pytest.raises(CladaError, match="x is 7 wide"):
        evaluate(OP, Case("", {"x": x}, {"activation": "silu"}))


def test_an_activation_that_no_kernel_has_is_refused():
    model = body_model(OP, "float32", {"activation": "silu"}, 20)
    model.graph.node[0].attribute[0].s = b"tanh"
    with pytest.raises(Exception, match="activation 'tanh' is not known"):
        run_onnxruntime(model, OP, [np.ones((1, 1, 8), np.float32)], INSTRUCTIONS[0])
