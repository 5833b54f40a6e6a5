"""Sparse feed-forward ops: a neuron whose activation is below its threshold is not computed further."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from clada.ops.activations import ACTIVATIONS
from clada.ops.record import Array, Attribute, Case, Op, Tensor, names_of
from clada.ops.thresholds import SELECT, is_kept, tie_free_threshold

_X = Tensor("x", "T", ("B", "S", "D"))
_THRESHOLD = Tensor("threshold", "float32", ("F",), "threshold")
_SCALE = Tensor("scale", "float32", ("B", "S"), "scale")
_POOL = Tensor("pool", "bool", ("B", "F"), "pool")
_OUTPUTS = (
    Tensor("y", "T", ("B", "S", "D")),
    Tensor("active", "int32", ("B", "S")),
    Tensor("score", "float32", ("B", "F")),
)
_ACTIVATION = Attribute("activation", "silu", tuple(ACTIVATIONS))

_SELECTION_DOC = """
    kept_i = pool_i and scale >= 0 and a_i != 0 and not (|a_i| < scale * threshold_i)
    active = sum_i kept_i        score_i = sum_s h_{s,i}^2 / ||h_s||^2   (a token with h = 0 adds nothing)

scale = 0 keeps the whole pool but what is exactly zero; scale < 0 marks padding, for which nothing is kept.
"""


def _kept(a: Array, threshold: Array, scale: Array, pool: Array) -> Array:
    return np.asarray(pool[:, None, :] & is_kept(a, threshold, scale))


def _score(h: Array) -> Array:
    energy = h**2
    total = energy.sum(axis=-1, keepdims=True)
    return (energy / np.where(total == 0, 1, total)).sum(axis=1)


def _gated_reference(
    x: Array,
    w_gate: Array,
    w_up: Array,
    w_down: Array,
    threshold: Array,
    scale: Array,
    pool: Array,
    *,
    activation: str,
) -> tuple[Array, ...]:
    a = ACTIVATIONS[activation].reference(x @ w_gate.T)
    kept = _kept(a, threshold, scale, pool)
    h = np.where(kept, a * (x @ w_up.T), 0)
    return h @ w_down, kept.sum(axis=-1, dtype=np.int32), _score(h)


def _plain_reference(
    x: Array,
    w_in: Array,
    b_in: Array,
    w_out: Array,
    b_out: Array,
    threshold: Array,
    scale: Array,
    pool: Array,
    *,
    activation: str,
) -> tuple[Array, ...]:
    a = ACTIVATIONS[activation].reference(x @ w_in.T + b_in)
    kept = _kept(a, threshold, scale, pool)
    h = np.where(kept, a, 0)
    return h @ w_out + b_out, kept.sum(axis=-1, dtype=np.int32), _score(h)


# Reads a, threshold, scale, pool; writes kept and active.
_SELECT = f"""
    {SELECT}
    token_axis = Constant <value_ints = [1]> ()
    pool_row = Unsqueeze (pool, token_axis)
    kept = And (pool_row, large)
    kept_count = Cast <to = 6> (kept)
    active = ReduceSum <keepdims = 0> (kept_count, last_axis)
"""

# Reads h; writes score.
_SCORE = """
    energy = Mul (h, h)
    total = ReduceSum <keepdims = 1> (energy, last_axis)
    is_empty = Equal (total, zero)
    one = Constant <value_float = 1.0> ()
    divisor = Where (is_empty, one, total)
    share = Div (energy, divisor)
    score = ReduceSum <keepdims = 0> (share, token_axis)
"""


def _gated_body(attributes: Mapping[str, str | float]) -> str:
    return f"""
    gate_matrix = Transpose <perm = [1, 0]> (w_gate)
    gate = MatMul (x, gate_matrix)
    z = Cast <to = 1> (gate)
    {ACTIVATIONS[str(attributes["activation"])].onnx}
    {_SELECT}
    up_matrix = Transpose <perm = [1, 0]> (w_up)
    up_low = MatMul (x, up_matrix)
    up = Cast <to = 1> (up_low)
    product = Mul (a, up)
    h = Where (kept, product, zero)
    h_low = CastLike (h, x)
    y = MatMul (h_low, w_down)
    {_SCORE}
    """


def _plain_body(attributes: Mapping[str, str | float]) -> str:
    return f"""
    in_matrix = Transpose <perm = [1, 0]> (w_in)
    z_product = MatMul (x, in_matrix)
    z_low = Add (z_product, b_in)
    z = Cast <to = 1> (z_low)
    {ACTIVATIONS[str(attributes["activation"])].onnx}
    {_SELECT}
    h = Where (kept, a, zero)
    h_low = CastLike (h, x)
    y_product = MatMul (h_low, w_out)
    y = Add (y_product, b_out)
    {_SCORE}
    """


_D, _F = 24, 37
# For each kind of case: the scales of its tokens, in turn, and the share of neurons in the pool.
_KINDS: dict[str, tuple[tuple[float, ...], float]] = {
    "mixed": ((1.0, -1.0, 0.0, 0.5, 1.25), 0.8),
    "dense": ((0.0,), 1.0),
    "padding": ((-1.0,), 1.0),
    "nothing": ((1e30,), 1.0),
    "empty_pool": ((1.0,), 0.0),
}


def ffn_cases(
    gated: bool, width: int = _D, rounded: Callable[[Array], Array] = lambda matrix: matrix
) -> Iterator[Case]:
    """Yield sample cases of a feed-forward op.

    Args:
        gated: Whether the op has a gate.
        width: D.
        rounded: Applied to each matrix [F, D] of weights before thresholds are chosen by them.
    """
    shapes = [(b, s) for b in (1, 3) for s in (1, 2, 17)]
    settings = [(activation, "mixed", b, s) for activation in ACTIVATIONS for b, s in shapes]
    settings += [("silu" if gated else "relu", kind, 3, 2) for kind in _KINDS if kind != "mixed"]
    for activation, kind, b, s in settings:
        rng = np.random.default_rng([b, s, len(kind), list(ACTIVATIONS).index(activation)])
        scales, pool_share = _KINDS[kind]
        x = rng.standard_normal((b, s, width))
        w_in, w_up, w_out = (rounded(rng.standard_normal((_F, width)) / np.sqrt(width)) for _ in range(3))
        b_in, b_out = rng.standard_normal(_F) / 4, rng.standard_normal(width) / 4
        scale = np.resize(np.array(scales, np.float32), b * s).reshape(b, s)
        z = x @ w_in.T + (0 if gated else b_in)
        threshold = tie_free_threshold(ACTIVATIONS[activation].reference(z), np.minimum(scale, 2), rng)
        if kind == "nothing":
            threshold += 0.01  # ReLU's are 0 where half of the activations are, and 0 keeps the rest
        selection = {"threshold": threshold, "scale": scale, "pool": rng.random((b, _F)) < pool_share}
        if gated:
            weights = {"w_gate": w_in, "w_up": w_up, "w_down": w_out}
        else:
            weights = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
        name = f"{activation}-{kind}-B{b}-S{s}"
        yield Case(name, {"x": x, **weights, **selection}, {"activation": activation})


SPARSE_GATED_FFN = Op(
    name="SparseGatedFFN",
    doc=f"""Gated feed-forward network (SwiGLU, GeGLU) that computes only the neurons that matter to each token.

    a = act(x . w_gate^T)        h_i = kept_i * a_i * (x . w_up^T)_i        y = h . w_down
{_SELECTION_DOC}""",
    inputs=(
        _X,
        Tensor("w_gate", "T", ("F", "D"), "matrix"),
        Tensor("w_up", "T", ("F", "D"), "matrix"),
        Tensor("w_down", "T", ("F", "D"), "matrix"),
        _THRESHOLD,
        _SCALE,
        _POOL,
    ),
    outputs=_OUTPUTS,
    attributes=(_ACTIVATION,),
    reference=_gated_reference,
    body=_gated_body,
    cases=lambda: ffn_cases(gated=True),
)

SPARSE_FFN = Op(
    name="SparseFFN",
    doc=f"""Feed-forward network without a gate (GPT-NeoX, OPT) that computes only the neurons that matter.

    a = act(x . w_in^T + b_in)        h_i = kept_i * a_i        y = h . w_out + b_out
{_SELECTION_DOC}
b_out is added to every token, padding included.""",
    inputs=(
        _X,
        Tensor("w_in", "T", ("F", "D"), "matrix"),
        Tensor("b_in", "T", ("F",), "bias", of="w_in"),
        Tensor("w_out", "T", ("F", "D"), "matrix"),
        Tensor("b_out", "T", ("D",), "bias", of="w_out"),
        _THRESHOLD,
        _SCALE,
        _POOL,
    ),
    outputs=_OUTPUTS,
    attributes=(_ACTIVATION,),
    reference=_plain_reference,
    body=_plain_body,
    cases=lambda: ffn_cases(gated=False),
)


def weight_matrices(op: Op) -> int:
    """Number of weight matrices of a feed-forward op: one inward, read for the pool, the rest for active neurons."""
    return len(names_of(op, "matrix"))


def read_fraction(op: Op, pool: Array, active: Array, neurons: Array | int) -> Array:
    """Share of a feed-forward network's bytes that is read: the inward matrix for the pool, the rest where active.

    Args:
        op: One of the ops above.
        pool: Neurons that may be used.
        active: Neurons that are.
        neurons: Number of neurons.
    """
    matrices = weight_matrices(op)
    return (pool + (matrices - 1) * active) / (matrices * neurons)
