"""GatedActivation's kernels against the float64 reference: cases, instruction sets, types."""

import numpy as np
import pytest

from clada.ops import GATED_ACTIVATION
from clada.ops.record import FLOAT_TYPES, Case, evaluate
from tests.native.calls import rounded
from tests.native.cpu_ops_c import gated_activation
from tests.native.test_kernels import instructions


@instructions
@pytest.mark.parametrize("element", FLOAT_TYPES)
@pytest.mark.parametrize("case", list(GATED_ACTIVATION.cases()), ids=lambda case: case.name)
def test_matches_reference(case, element, instructions):
    x, activation = rounded(case.inputs["x"], element), case.attributes["activation"]
    (expected,) = evaluate(GATED_ACTIVATION, Case("", {"x": x}, case.attributes))
    for threads, offset in ((1, 0), (3, 2)):
        y = gated_activation(x, activation, instructions=instructions, threads=threads, element=element, offset=offset)
        bound = GATED_ACTIVATION.tolerance[element] * np.abs(expected).max(initial=0)
        assert np.abs(y - expected).max(initial=0) <= bound
