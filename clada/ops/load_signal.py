"""Load signal: how hard the text is for the model, and by how much its thresholds are loosened."""

from collections.abc import Iterator, Mapping

import numpy as np

from clada.ops.record import Array, Attribute, Case, Op, Tensor

# Keeps the slope finite between two equal knots; the smallest normal float32.
_TINY = 2.0**-126
# Tokens whose probabilities the function body sums at once.
_PIECE = 512


def _distribution(value: Array, knots: Array) -> Array:
    """Distribution function: piecewise linear, 0 below the first knot and 1 above the last; value [B], knots [K]."""
    low, width = knots[:-1], np.maximum(np.diff(knots), _TINY)
    return np.minimum(np.maximum((value[:, None] - low) / width, 0), 1).mean(axis=-1)


def _reference(
    logits: Array,
    token: Array,
    surprisal_knots: Array,
    entropy_knots: Array,
    scale_knots: Array,
    *,
    surprisal_weight: float,
) -> tuple[Array, ...]:
    top = logits.max(axis=-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    p = np.exp(log_p)
    surprisal = -np.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
    entropy = -np.where(p == 0, 0, p * log_p).sum(axis=-1)
    load = surprisal_weight * _distribution(surprisal, surprisal_knots)
    load = load + (1 - surprisal_weight) * _distribution(entropy, entropy_knots)
    segments = np.arange(len(scale_knots) - 1)
    along = np.minimum(np.maximum(load[:, None] * len(segments) - segments, 0), 1)
    scale = scale_knots[0] + (along * np.diff(scale_knots)).sum(axis=-1)
    return scale, load, surprisal, entropy


def _distribution_body(value: str) -> str:
    """Function body that reads `{value}` [B] and `{value}_knots`, and writes `{value}_rank` [B]."""
    return f"""
    {value}_low = Slice ({value}_knots, first, minus_one, first)
    {value}_high = Slice ({value}_knots, second, end, first)
    {value}_span = Sub ({value}_high, {value}_low)
    {value}_width = Max ({value}_span, tiny)
    {value}_column = Unsqueeze ({value}, last_axis)
    {value}_above = Sub ({value}_column, {value}_low)
    {value}_slope = Div ({value}_above, {value}_width)
    {value}_floored = Max ({value}_slope, zero)
    {value}_clipped = Min ({value}_floored, one)
    {value}_rank = ReduceMean <keepdims = 0> ({value}_clipped, last_axis)
    """


def _sum_body(value: str, total: str) -> str:
    """Function body that reads `{value}` [B, V] and writes its sum `{total}` [B], summed in pieces first.

    One float32 sum after another would be off by as much as V roundings, 1e-4 for a vocabulary of 150,000.
    """
    return f"""
    {value}_padded = Pad ({value}, pads)
    {value}_pieces = Reshape ({value}_padded, in_pieces)
    {value}_sums = ReduceSum <keepdims = 0> ({value}_pieces, last_axis)
    {total} = ReduceSum <keepdims = 0> ({value}_sums, last_axis)
    """


def _body(attributes: Mapping[str, str | float]) -> str:
    return f"""
    zero = Constant <value_float = 0.0> ()
    one = Constant <value_float = 1.0> ()
    tiny = Constant <value_float = {_TINY!r}> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    minus_one = Constant <value_ints = [-1]> ()
    last = Constant <value_int = -1> ()
    end = Constant <value_ints = [2147483647]> ()
    last_axis = Constant <value_ints = [-1]> ()

    logits_wide = Cast <to = 1> (logits)
    top = ReduceMax <keepdims = 1> (logits_wide, last_axis)
    z = Sub (logits_wide, top)
    e = Exp (z)
    is_impossible = Equal (e, zero)
    product = Mul (e, z)
    weighted = Where (is_impossible, zero, product)

    shape = Shape (logits)
    vocabulary = Gather <axis = 0> (shape, last)
    piece = Constant <value_int = {_PIECE}> ()
    nearly_a_piece = Constant <value_int = {_PIECE - 1}> ()
    rounded_up = Add (vocabulary, nearly_a_piece)
    pieces = Div (rounded_up, piece)
    padded = Mul (pieces, piece)
    missing = Sub (padded, vocabulary)
    missing_column = Unsqueeze (missing, first)
    before = Constant <value_ints = [0, 0, 0]> ()
    pads = Concat <axis = 0> (before, missing_column)
    in_pieces = Constant <value_ints = [0, -1, {_PIECE}]> ()
    {_sum_body("e", "total")}
    {_sum_body("weighted", "weighted_total")}

    log_total = Log (total)
    token_column = Unsqueeze (token, last_axis)
    token_z_column = GatherElements <axis = -1> (z, token_column)
    token_z = Squeeze (token_z_column, last_axis)
    surprisal = Sub (log_total, token_z)
    mean_z = Div (weighted_total, total)
    entropy = Sub (log_total, mean_z)

    {_distribution_body("surprisal")}
    {_distribution_body("entropy")}
    weight = Constant <value_float: float = @surprisal_weight> ()
    rest = Sub (one, weight)
    surprisal_part = Mul (weight, surprisal_rank)
    entropy_part = Mul (rest, entropy_rank)
    load = Add (surprisal_part, entropy_part)

    scale_low = Slice (scale_knots, first, minus_one, first)
    scale_high = Slice (scale_knots, second, end, first)
    scale_step = Sub (scale_high, scale_low)
    count = Size (scale_step)
    segments = Cast <to = 1> (count)
    start = Constant <value_int = 0> ()
    stride = Constant <value_int = 1> ()
    index_int = Range (start, count, stride)
    index = Cast <to = 1> (index_int)
    load_column = Unsqueeze (load, last_axis)
    position = Mul (load_column, segments)
    distance = Sub (position, index)
    along_floored = Max (distance, zero)
    along = Min (along_floored, one)
    rise = Mul (along, scale_step)
    total_rise = ReduceSum <keepdims = 0> (rise, last_axis)
    scale_first = Slice (scale_knots, first, second, first)
    scale = Add (scale_first, total_rise)
    """


def _cases() -> Iterator[Case]:
    for b in (1, 3):
        for v in (7, 1000, 151_936):
            for spread in (0.1, 4.0):
                rng = np.random.default_rng([b, v, int(10 * spread)])
                inputs: dict[str, Array] = {
                    "logits": rng.standard_normal((b, v)) * spread,
                    "token": rng.integers(0, v, b),
                    "surprisal_knots": np.sort(rng.uniform(0, 2 * np.log(v), 9)).astype(np.float32),
                    "entropy_knots": np.sort(rng.uniform(0, np.log(v), 9)).astype(np.float32),
                    "scale_knots": np.array([1.3, 1.2, 1.0, 0.8, 0.8], np.float32),
                }
                yield Case(f"B{b}-V{v}-spread{spread}", inputs, {"surprisal_weight": 0.4})


LOAD_SIGNAL = Op(
    name="LoadSignal",
    doc="""Cognitive load of the token just read, and the factor on the thresholds that follows from it.

    surprisal = logsumexp(z) - z[token]        entropy = logsumexp(z) - sum softmax(z) * z        (nats)
    load = w * F_S(surprisal) + (1 - w) * F_H(entropy)        w = surprisal_weight

F is piecewise linear through the knots (calibrated quantiles), 0 below the first and 1 above the last; where two
knots are equal it takes the lower value. scale is the piecewise-linear map of load through scale_knots at
load = 0, 1/(M-1), ..., 1. A logit of -inf is a token of probability 0 and adds nothing to the entropy.""",
    inputs=(
        Tensor("logits", "T", ("B", "V")),
        Tensor("token", "int64", ("B",)),
        Tensor("surprisal_knots", "float32", ("K",), "knots", least=2),
        Tensor("entropy_knots", "float32", ("K",), "knots", least=2),
        Tensor("scale_knots", "float32", ("M",), "knots", least=1),
    ),
    outputs=tuple(Tensor(name, "float32", ("B",)) for name in ("scale", "load", "surprisal", "entropy")),
    attributes=(Attribute("surprisal_weight", 0.5),),
    reference=_reference,
    body=_body,
    cases=_cases,
    # Summed so that it does not grow with the vocabulary.
    tolerance={"float32": 2e-6, "float16": 5e-3, "bfloat16": 4e-2},
)
