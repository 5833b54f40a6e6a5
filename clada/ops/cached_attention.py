"""Attention over a KV cache that is written in place: one text's, on a CPU."""

from collections.abc import Iterator, Mapping

import numpy as np

from clada.errors import CladaError
from clada.ops.record import Array, Attribute, Case, Op, Tensor

# Domain and version of the ops of ONNX Runtime that the body has.
MICROSOFT = {"com.microsoft": 1}
# How pairs of a head are turned: not at all, each value with the one half of the width later, or with its neighbor.
ROTARY = ("none", "halves", "interleaved")


def _turned(heads: Array, cos: Array, sin: Array, rotary: str) -> Array:
    """Heads [S, H, E], their first values turned by the angles [S, R] of their tokens."""
    if rotary == "none":
        return heads
    pairs = cos.shape[1]
    cos, sin = cos[: len(heads), None], sin[: len(heads), None]
    out = heads.copy()
    spans = (slice(0, pairs), slice(pairs, 2 * pairs))
    if rotary == "interleaved":
        spans = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    one, other = (heads[..., span] for span in spans)
    out[..., spans[0]], out[..., spans[1]] = one * cos - other * sin, other * cos + one * sin
    return out


def _reference(
    qkv: Array,
    cos: Array,
    sin: Array,
    past_key: Array,
    past_value: Array,
    last: Array,
    _total: Array,
    *,
    num_heads: int,
    kv_num_heads: int,
    rotary: str,
    rotary_embedding_dim: int,  # twice the width of cos
    scale: float,
    softcap: float,
    local_window_size: int,
) -> tuple[Array, ...]:
    width = past_key.shape[-1]
    heads = qkv[0].reshape(-1, num_heads + 2 * kv_num_heads, width)  # [S, H + 2K, E]
    queries, keys, values = np.split(heads, [num_heads, num_heads + kv_num_heads], axis=1)
    queries, keys = _turned(queries, cos, sin, rotary), _turned(keys, cos, sin, rotary)
    total = int(last[0]) + 1
    places = np.arange(total - len(heads), total)
    present_key, present_value = past_key.copy(), past_value.copy()
    present_key[0, :, places], present_value[0, :, places] = keys, values
    seen = np.arange(total) <= places[:, None]  # [S, T]
    if local_window_size >= 0:
        seen &= np.arange(total) > places[:, None] - local_window_size
    group = num_heads // kv_num_heads
    mixed = np.zeros_like(queries)
    for head in range(num_heads):
        scores = queries[:, head] @ present_key[0, head // group, :total].T * scale  # [S, T]
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.where(seen, np.exp(scores - np.where(seen, scores, -np.inf).max(-1, keepdims=True)), 0)
        mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ present_value[0, head // group, :total]
    return mixed.reshape(1, len(heads), -1), present_key, present_value


def _turned_body(name: str, heads: str, interleaved: bool) -> str:
    return f"""
    {name} = com.microsoft.RotaryEmbedding <num_heads: int = @{heads},
        rotary_embedding_dim: int = @rotary_embedding_dim, interleaved = {int(interleaved)}>
        ({name}_given, start, cos, sin)
    """


def _body(attributes: Mapping[str, str | float]) -> str:
    rotary = attributes["rotary"]
    given = "" if rotary == "none" else "_given"
    turned = "".join(
        _turned_body(name, heads, rotary == "interleaved")
        for name, heads in (("queries", "num_heads"), ("keys", "kv_num_heads"))
        if given
    )
    return f"""
    start = Constant <value_ints = [0]> ()
    shape = Shape <start = 3> (past_key)
    heads = Constant <value_int: int = @num_heads> ()
    kv_heads = Constant <value_int: int = @kv_num_heads> ()
    of_queries = Mul (heads, shape)
    of_keys = Mul (kv_heads, shape)
    widths = Concat <axis = 0> (of_queries, of_keys, of_keys)
    queries{given}, keys{given}, values = Split <axis = -1> (qkv, widths)
    {turned}
    y, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
        kv_num_heads: int = @kv_num_heads, scale: float = @scale, softcap: float = @softcap,
        local_window_size: int = @local_window_size> (queries, keys, values, past_key, past_value, last, total)
    """


def _check_sizes(sizes: Mapping[str, int], attributes: Mapping[str, str | float]) -> None:
    heads, kv_heads, width = int(attributes["num_heads"]), int(attributes["kv_num_heads"]), sizes["E"]
    if sizes["B"] != 1:
        raise CladaError(f"CachedAttention: {sizes['B']} texts, and a cache in place is one text's")
    if sizes["K"] != kv_heads or heads % kv_heads or sizes["W"] != (heads + 2 * kv_heads) * width:
        raise CladaError(
            f"CachedAttention: qkv is {sizes['W']} wide and the cache has {sizes['K']} heads of {width}, which does "
            f"not fit {heads} heads of queries and {kv_heads} of keys"
        )


def _output_sizes(sizes: Mapping[str, int], attributes: Mapping[str, str | float]) -> Mapping[str, int]:
    return {"Y": int(attributes["num_heads"]) * sizes["E"]}


# Heads of queries and of keys, their width, pairs that are turned, and how.
_HEADS = ((14, 2, 64, 32, "halves"), (4, 4, 24, 8, "interleaved"), (3, 1, 8, 0, "none"), (2, 2, 264, 132, "halves"))
# Tokens that are new, tokens before them, room in the cache, window and soft cap.
_LENGTHS = (
    (1, 0, 64, -1, 0.0),
    (1, 700, 1024, -1, 0.0),
    (1, 600, 1024, 300, 0.0),
    (5, 300, 320, 7, 3.0),
    (150, 0, 256, -1, 0.0),
)


def cached_attention_cases() -> Iterator[Case]:
    """Yield sample cases: decode, speculation and prefill, short and long."""
    for heads, kv_heads, width, pairs, rotary in _HEADS:
        for length, past, room, window, softcap in _LENGTHS:
            rng = np.random.default_rng([heads, length, past])
            angles = rng.uniform(0, 6, (length, pairs)) if pairs else np.zeros((0, 0))
            inputs = {
                "qkv": rng.standard_normal((1, length, (heads + 2 * kv_heads) * width)),
                "cos": np.cos(angles),
                "sin": np.sin(angles),
                "past_key": rng.standard_normal((1, kv_heads, room, width)),
                "past_value": rng.standard_normal((1, kv_heads, room, width)),
                "last": np.array([past + length - 1], np.int32),
                "total": np.array(past + length, np.int32),
            }
            attributes: dict[str, str | float] = {
                "num_heads": heads,
                "kv_num_heads": kv_heads,
                "rotary": rotary,
                "rotary_embedding_dim": 2 * pairs,
                "scale": float(width**-0.5),
                "softcap": softcap,
                "local_window_size": window,
            }
            yield Case(f"{heads}x{width}-{rotary}-{length}-after-{past}", inputs, attributes)


CACHED_ATTENTION = Op(
    name="CachedAttention",
    doc="""Grouped-query attention of new tokens over a KV cache, into which their keys and values are written.

qkv holds, of each token, the heads of its queries, its keys and its values. The first rotary_embedding_dim values of
each head of queries and keys are turned in pairs, (a, b) to (a cos - b sin, b cos + a sin), by the angles of their
token. The last token is at place `last` of the cache; a token attends to all up to itself, or to as many as
local_window_size is.

weights = softmax(cap(scale * q . k))        cap(z) = softcap * tanh(z / softcap), z where softcap is 0
y = sum over keys of weights * v

The cache may be longer than the text, and present_key and present_value may be the memory of past_key and past_value.
total is at least last + 1, for the body alone.""",
    inputs=(
        Tensor("qkv", "T", ("B", "S", "W")),
        Tensor("cos", "T", ("A", "R")),
        Tensor("sin", "T", ("A", "R")),
        Tensor("past_key", "T", ("B", "K", "C", "E")),
        Tensor("past_value", "T", ("B", "K", "C", "E")),
        Tensor("last", "int32", ("B",)),
        Tensor("total", "int32", ()),
    ),
    outputs=(
        Tensor("y", "T", ("B", "S", "Y")),
        Tensor("present_key", "T", ("B", "K", "C", "E")),
        Tensor("present_value", "T", ("B", "K", "C", "E")),
    ),
    attributes=(
        Attribute("num_heads", 1),
        Attribute("kv_num_heads", 1),
        Attribute("rotary", "none", ROTARY),
        Attribute("rotary_embedding_dim", 0),
        Attribute("scale", 1.0),
        Attribute("softcap", 0.0),
        Attribute("local_window_size", -1),
    ),
    reference=_reference,
    body=_body,
    cases=cached_attention_cases,
    check_sizes=_check_sizes,
    output_sizes=_output_sizes,
    body_domains=MICROSOFT,
)
