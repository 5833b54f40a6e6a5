"""Activated gate times what it gates, of one product that has both."""

from collections.abc import Iterator, Mapping

import numpy as np

from clada.errors import CladaError
from clada.ops.activations import ACTIVATIONS
from clada.ops.record import Array, Attribute, Case, Op, Tensor

# The statements of the standard ops, from `gate` to `a`, in the type of the model.
_STATEMENTS = {
    "silu": "gate_sigmoid = Sigmoid (gate) a = Mul (gate, gate_sigmoid)",
    "gelu": "a = Gelu (gate)",
    "gelu_tanh": 'a = Gelu <approximate = "tanh"> (gate)',
    "relu": "a = Relu (gate)",
}


def _reference(x: Array, *, activation: str) -> tuple[Array, ...]:
    gate, up = np.split(x, 2, axis=-1)
    return (ACTIVATIONS[activation].reference(gate) * up,)


def _body(attributes: Mapping[str, str | float]) -> str:
    return f"""
    gate, up = Split <axis = -1, num_outputs = 2> (x)
    {_STATEMENTS[str(attributes["activation"])]}
    y = Mul (a, up)
    """


def _check_sizes(sizes: Mapping[str, int], _attributes: Mapping[str, str | float]) -> None:
    if sizes["W"] % 2:
        raise CladaError(f"GatedActivation: x is {sizes['W']} wide, which is not twice a width")


def _cases() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for batch, length, width in ((1, 1, 37), (1, 1, 9000), (2, 3, 1030), (1, 0, 8)):
            rng = np.random.default_rng([batch, length, width])
            x = rng.standard_normal((batch, length, 2 * width)) * 3
            yield Case(f"{activation}-B{batch}-S{length}-F{width}", {"x": x}, {"activation": activation})


GATED_ACTIVATION = Op(
    name="GatedActivation",
    doc="""Activated gate times what it gates: y = activation(gate) * up, where x holds gate and then up.""",
    inputs=(Tensor("x", "T", ("B", "S", "W")),),
    outputs=(Tensor("y", "T", ("B", "S", "F")),),
    attributes=(Attribute("activation", "silu", tuple(ACTIVATIONS)),),
    reference=_reference,
    body=_body,
    cases=_cases,
    check_sizes=_check_sizes,
    output_sizes=lambda sizes, _attributes: {"F": sizes["W"] // 2},
)
