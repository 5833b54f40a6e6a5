"""What is timed for the linear layers of one decoder layer, each a product that skips the inputs of a token."""

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
from clada.benchmark.layer_graph import copies_of_bytes, numbered
from clada.benchmark.precisions import FLOATS
from clada.benchmark.sessions import Bound, execution
from clada.benchmark.settings import Settings
from clada.benchmark.shapes import Shape
from clada.benchmark.storage import initializer
from clada.benchmark.thresholds import exact_share
from clada.benchmark.variants import write_pair
from clada.exporter.settings import DEFAULT_OPSET
from clada.plugins.errors import CladaError
from clada.plugins.onnx import function_proto
from clada.plugins.ops import DOMAIN, PLUGIN_ATTRIBUTES, SPARSE_LINEAR, VERSION
from clada.plugins.ops.record import Array
from clada.runtime.backends.onnxruntime import create_session


def products(shape: Shape) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each product of a decoder layer, by name: those of one input are one."""
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
        copies: How many times each graph holds them.
        dense: The session of ONNX Runtime's own products.
        ours: Sessions of our op by the precision its weights are held in.
    """

    weights: dict[str, Array]
    copies: int
    dense: onnxruntime.InferenceSession
    ours: dict[str, onnxruntime.InferenceSession]

    @property
    def bytes(self) -> int:
        """Of all weights of one copy, in float32."""
        return sum(matrix.nbytes for matrix in self.weights.values())


def _input(name: str, shape: list[int | str]) -> onnx_ir.Value:
    return onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))


def linears_model(weights: Mapping[str, Array], copies: int) -> onnx_ir.Model:
    """Our op for each product and copy, batch 1; thresholds are inputs, so that one session serves all shares."""
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


def float_precisions(settings: Settings) -> list[str]:
    """The precisions asked for that the op has.

    Raises:
        CladaError: There is none.
    """
    precisions = [precision for precision in settings.weights if precision in FLOATS]
    if not precisions:
        raise CladaError(f"linears are measured in {' and '.join(FLOATS)} only; add one of them to --weights")
    return precisions


@contextmanager
def opened_linears(shape: Shape, settings: Settings) -> Iterator[Linears]:
    """Make the products; their files are gone when the context ends."""
    generator = np.random.default_rng(0)
    weights = {
        name: generator.standard_normal((width, outputs), np.float32) / np.float32(np.sqrt(width))
        for name, (width, outputs) in products(shape).items()
    }
    copies = copies_of_bytes(sum(matrix.nbytes for matrix in weights.values()) // 2)
    with TemporaryDirectory(prefix="clada-bench-") as folder:
        sparse, products_of_onnx = write_pair(linears_model(weights, copies), Path(folder))
        without = create_session(products_of_onnx.path, execution(settings.threads, None))[0]
        sessions = {
            precision: create_session(sparse.path, execution(settings.threads, precision))[0]
            for precision in float_precisions(settings)
        }
        yield Linears(weights, copies, without, sessions)


def _inputs(linears: Linears, tokens: int) -> dict[str, Array]:
    generator = np.random.default_rng(1)
    return {
        name: generator.standard_normal((1, tokens, len(matrix)), np.float32)
        for name, matrix in linears.weights.items()
    }


def _contender(
    linears: Linears, name: str, bound: Bound, expected: Mapping[str, Array], share: float, size: float
) -> Contender:
    """A contender whose outputs of the first copy are checked against what they should be."""
    bound.run()
    results = bound.results()
    error = max(checked_error(name, results[f"y.{product}.0"], y, FARTHEST_OF_OWN) for product, y in expected.items())
    return Contender(name, partial(always, bound.run, share), active_bytes=size, error=error, repeats=linears.copies)


def linears_contenders(linears: Linears, tokens: int, fractions: tuple[float, ...]) -> list[Contender]:
    """All contenders for a number of tokens at once; ours with these shares of inputs beside dense.

    Raises:
        CladaError: One of them does not compute what it should.
    """
    x = _inputs(linears, tokens)
    given = {f"x.{name}": array for name, array in x.items()}
    names = [value for name in linears.weights for value in numbered(f"y.{name}", linears.copies)]
    whole = {name: array @ linears.weights[name] for name, array in x.items()}
    contenders = [_contender(linears, dense("float32"), Bound(linears.dense, given, names), whole, 1.0, linears.bytes)]
    counts = [value for name in linears.weights for value in numbered(f"kept.{name}", linears.copies)]
    for precision, session in linears.ours.items():
        size = linears.bytes / (2 if precision == "bfloat16" else 1)
        for fraction in (None, *fractions):
            thresholds = {f"threshold.{name}": np.zeros(len(w), np.float32) for name, w in linears.weights.items()}
            expected = whole
            if fraction is not None:
                expected = {}
                for name, array in x.items():
                    threshold, scale = exact_share(np.abs(array[0]).astype(np.float64), fraction)
                    thresholds[f"threshold.{name}"] = threshold * scale[0]
                    kept = np.where(np.abs(array) >= threshold * scale[0], array, 0)
                    expected[name] = kept @ linears.weights[name]
            steering = thresholds | {"scale": np.full((1, tokens), fraction is not None, np.float32)}
            name, bound = ours(fraction, precision), Bound(session, given | steering, [*names, *counts])
            contenders.append(_contender(linears, name, bound, expected, fraction or 1.0, size))
            _check_counts(name, bound.results(), linears, fraction or 1.0)
    return contenders


def _check_counts(name: str, results: Mapping[str, Array], linears: Linears, share: float) -> None:
    for product, matrix in linears.weights.items():
        kept, wanted = results[f"kept.{product}.0"], round(share * len(matrix))
        if (kept != wanted).any():
            raise CladaError(f"{name} kept {kept.min()} inputs of {product} instead of {wanted}")
