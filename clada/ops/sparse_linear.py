"""Sparse linear op: an input below its threshold counts as 0, and its row of weights is not read."""

from collections.abc import Iterator, Mapping

import numpy as np

from clada.ops.record import Array, Case, Op, Tensor
from clada.ops.thresholds import SELECT, is_kept, tie_free_threshold


def _reference(x: Array, w: Array, threshold: Array, scale: Array) -> tuple[Array, ...]:
    kept = is_kept(x, threshold, scale)
    return np.where(kept, x, 0) @ w, kept.sum(axis=-1, dtype=np.int32)


def _body(_attributes: Mapping[str, str | float]) -> str:
    return f"""
    a = Cast <to = 1> (x)
    {SELECT}
    kept_count = Cast <to = 6> (large)
    kept = ReduceSum <keepdims = 0> (kept_count, last_axis)
    kept_wide = Where (large, a, zero)
    kept_x = CastLike (kept_wide, x)
    rows = CastLike (w, x)
    y = MatMul (kept_x, rows)
    """


# Neither this nor the outputs of the cases fill vectors of any instruction set.
_D = 37
# For each kind of case: the scales of its tokens, in turn.
_KINDS = {
    "mixed": (1.0, -1.0, 0.0, 0.5, 1.25),
    "dense": (0.0,),
    "padding": (-1.0,),
    "nothing": (1e30,),
}


def linear_cases(outputs: int = 45) -> Iterator[Case]:
    """Yield sample cases, with thresholds that no rounding of x moves an input across.

    Args:
        outputs: N.
    """
    settings = [("mixed", b, s) for b in (1, 3) for s in (1, 2, 17)]
    settings += [(kind, 3, 2) for kind in _KINDS if kind != "mixed"]
    for kind, b, s in settings:
        rng = np.random.default_rng([b, s, len(kind)])
        x = rng.standard_normal((b, s, _D))
        scale = np.resize(np.array(_KINDS[kind], np.float32), b * s).reshape(b, s)
        inputs = {
            "x": x,
            "w": rng.standard_normal((_D, outputs)) / np.sqrt(_D),
            "threshold": tie_free_threshold(x, np.minimum(scale, 2), rng),
            "scale": scale,
        }
        yield Case(f"{kind}-B{b}-S{s}", inputs, {})


SPARSE_LINEAR = Op(
    name="SparseLinear",
    doc="""Product with a matrix of which a token reads only the rows whose inputs matter to it.

    kept_i = scale >= 0 and x_i != 0 and not (|x_i| < scale * threshold_i)
    y = sum over kept i of x_i * w_i        kept = sum_i kept_i

Row w_i is what input i writes: w is the transposed weight of a linear layer. scale = 0 keeps every input that is not
zero; scale < 0 marks padding, for which nothing is kept and y is 0. Where x is float32, w may be bfloat16.""",
    inputs=(
        Tensor("x", "T", ("B", "S", "D")),
        Tensor("w", "T", ("D", "N"), "matrix", narrow=True),
        Tensor("threshold", "float32", ("D",), "threshold"),
        Tensor("scale", "float32", ("B", "S"), "scale"),
    ),
    outputs=(Tensor("y", "T", ("B", "S", "N")), Tensor("kept", "int32", ("B", "S"))),
    attributes=(),
    reference=_reference,
    body=_body,
    cases=linear_cases,
)
