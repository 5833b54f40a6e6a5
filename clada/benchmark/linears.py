"""Benchmark of the linear layers of one decoder layer, as products that skip inputs of a token."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir
import onnxruntime

from clada.benchmark.contender import FARTHEST_OF_OWN, Contender, always, checked_error, dense, ours
from clada.benchmark.exact_thresholds import exact_share
from clada.benchmark.layer_graph import copies_of_bytes, numbered
from clada.benchmark.layer_output import weights_of_ours
from clada.benchmark.precisions import BLOCKS, restored
from clada.benchmark.sessions import Bound, execution
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import Shape
from clada.benchmark.storage import initializer
from clada.benchmark.variants import Variants, write_variants
from clada.errors import CladaError
from clada.exporter.defaults import DEFAULT_OPSET
from clada.ops import DOMAIN, PLUGIN_ATTRIBUTES, SPARSE_LINEAR, VERSION
from clada.ops.onnx import function_proto
from clada.ops.record import Array
from clada.runtime.models.ort_cpu import create_session


def products(shape: Shape) -> dict[str, tuple[int, int]]:
    """Number of inputs and outputs of each product of a decoder layer, by name: layers of one input are one product."""
    key_value = shape.hidden // shape.heads * shape.key_value_heads
    return {
        "qkv": (shape.hidden, shape.hidden + 2 * key_value),
        "o": (shape.hidden, shape.hidden),
        "gate_up": (shape.hidden, 2 * shape.neurons),
        "down": (shape.neurons, shape.hidden),
    }


@dataclass(frozen=True)
class Linears:
    """The products in every form that is compared.

    Args:
        weights: f32[D, N] of each by name.
        copies: Number of copies of them in each graph.
        variants: Their graphs.
        dense: Sessions of ONNX Runtime's own products by the precision of their weights.
        ours: Sessions of our op by the precision its weights are held in.
    """

    weights: dict[str, Array]
    copies: int
    variants: Variants
    dense: dict[str, onnxruntime.InferenceSession]
    ours: dict[str, onnxruntime.InferenceSession]


def _input(name: str, shape: list[int | str]) -> onnx_ir.Value:
    return onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))


def linears_model(weights: Mapping[str, Array], copies: int) -> onnx_ir.Model:
    """Model of our op for each product and copy, batch 1; thresholds are inputs: one session serves all shares."""
    scale = _input("scale", [1, "sequence_length"])
    inputs, nodes, held = [scale], [], []
    for name, matrix in weights.items():
        width = len(matrix)
        x, threshold = _input(f"x.{name}", [1, "sequence_length", width]), _input(f"threshold.{name}", [width])
        inputs += [x, threshold]
        for copy in range(copies):
            # The same outputs in another order, as equal weights would be stored once.
            own = initializer(f"w.{name}.{copy}", onnx_ir.tensor(np.roll(matrix, copy, axis=1)))
            node = onnx_ir.node(
                SPARSE_LINEAR.name, [x, own, threshold, scale], PLUGIN_ATTRIBUTES, domain=DOMAIN, num_outputs=2
            )
            for value, kind in zip(node.outputs, (onnx_ir.DataType.FLOAT, onnx_ir.DataType.INT32), strict=True):
                value.type = onnx_ir.TensorType(kind)
            node.outputs[0].name, node.outputs[1].name = f"y.{name}.{copy}", f"kept.{name}.{copy}"
            nodes.append(node)
            held.append(own)
    graph = onnx_ir.Graph(
        inputs,
        [value for node in nodes for value in node.outputs],
        nodes=nodes,
        initializers=held,
        opset_imports={"": DEFAULT_OPSET, DOMAIN: VERSION},
        name="linears",
    )
    function = onnx_ir.serde.deserialize_function(function_proto(SPARSE_LINEAR, {}, DEFAULT_OPSET))
    return onnx_ir.Model(graph, ir_version=10, functions=[function])


@contextmanager
def opened_linears(shape: Shape, settings: BenchSettings) -> Iterator[Linears]:
    """Make the products; their files are gone when the context ends."""
    generator = np.random.default_rng(0)
    weights = {
        name: generator.standard_normal((width, outputs), np.float32) / np.float32(np.sqrt(width))
        for name, (width, outputs) in products(shape).items()
    }
    copies = copies_of_bytes(sum(matrix.nbytes for matrix in weights.values()) // 2)
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        variants = write_variants(linears_model(weights, copies), Path(folder), settings.weights)
        without = {
            precision: create_session(graph.path, execution(settings.threads, None))[0]
            for precision, graph in variants.dense.items()
        }
        sessions = {
            precision: create_session(variants.of(precision).path, execution(settings.threads, precision))[0]
            for precision in settings.weights
        }
        yield Linears(weights, copies, variants, without, sessions)


def _inputs(linears: Linears, tokens: int) -> dict[str, Array]:
    generator = np.random.default_rng(1)
    return {
        name: generator.standard_normal((1, tokens, len(matrix)), np.float32)
        for name, matrix in linears.weights.items()
    }


def _contender(
    linears: Linears, name: str, bound: Bound, expected: Mapping[str, Array], share: float, size: float
) -> Contender:
    """Contender whose outputs of the first copy are checked against the expected ones."""
    bound.run()
    results = bound.results()
    error = max(checked_error(name, results[f"y.{product}.0"], y, FARTHEST_OF_OWN) for product, y in expected.items())
    return Contender(name, partial(always, bound.run, share), active_bytes=size, error=error, repeats=linears.copies)


def _dense(linears: Linears, precision: str, x: Mapping[str, Array]) -> Contender:
    """Contender of ONNX Runtime's own products, quantized in blocks along the summed axis."""
    names = [value for name in linears.weights for value in numbered(f"y.{name}", linears.copies)]
    expected = {
        name: array @ (w if precision not in BLOCKS else restored(w.T, BLOCKS[precision]).T)
        for (name, array), w in zip(x.items(), linears.weights.values(), strict=True)
    }
    bound = Bound(linears.dense[precision], {f"x.{name}": array for name, array in x.items()}, names)
    size = linears.variants.dense[precision].other_bytes / linears.copies
    return _contender(linears, dense(precision), bound, expected, 1.0, size)


def _ours(
    linears: Linears, precision: str, own: Mapping[str, Array], x: Mapping[str, Array], fraction: float | None
) -> Contender:
    """Contender of our op, dense or at an exact share of inputs.

    Args:
        linears: The products.
        precision: Precision of its weights.
        own: The weights f32[D, N] in that precision.
        x: Tokens f32[1, S, D] of each.
        fraction: The share; None is dense.

    Raises:
        CladaError: Another number of inputs was kept than was asked for, or the output is not that of the products.
    """
    given, expected = {f"x.{name}": array for name, array in x.items()}, {}
    for name, array in x.items():
        limit = np.zeros(array.shape[2], np.float32)
        if fraction is not None:
            threshold, scale = exact_share(np.abs(array[0]).astype(np.float64), fraction)
            limit = threshold * scale[0]
        given[f"threshold.{name}"] = limit
        expected[name] = np.where(np.abs(array) >= limit, array, 0) @ own[name]
    tokens = next(iter(x.values())).shape[1]
    given["scale"] = np.full((1, tokens), fraction is not None, np.float32)
    names = [value for name in x for output in ("y", "kept") for value in numbered(f"{output}.{name}", linears.copies)]
    name, bound = ours(fraction, precision), Bound(linears.ours[precision], given, names)
    size = linears.variants.neuron_bytes(precision) / linears.copies
    contender = _contender(linears, name, bound, expected, fraction or 1.0, size)
    _check_counts(name, bound.results(), linears, fraction or 1.0)
    return contender


def linears_contenders(linears: Linears, tokens: int, fractions: tuple[float, ...]) -> list[Contender]:
    """All contenders for a number of tokens at once; ours with these shares of inputs beside dense.

    Raises:
        CladaError: One of them does not compute what it should.
    """
    x = _inputs(linears, tokens)
    contenders = [_dense(linears, precision, x) for precision in linears.dense]
    for precision in linears.ours:
        own = weights_of_ours(linears.weights, precision)
        contenders += [_ours(linears, precision, own, x, fraction) for fraction in (None, *fractions)]
    return contenders


def _check_counts(name: str, results: Mapping[str, Array], linears: Linears, share: float) -> None:
    for product, matrix in linears.weights.items():
        kept, wanted = results[f"kept.{product}.0"], round(share * len(matrix))
        if (kept != wanted).any():
            raise CladaError(f"{name} kept {kept.min()} inputs of {product} instead of {wanted}")
