"""Measurements of the benchmark, one table after the other."""

from collections.abc import Callable, Iterator
from functools import partial

from clada.benchmark.contender import Contender
from clada.benchmark.floor import read_bandwidth
from clada.benchmark.layer import layer_contenders, opened_layer
from clada.benchmark.linears import linears_contenders, opened_linears
from clada.benchmark.report import Table, rows
from clada.benchmark.settings import BenchSettings
from clada.benchmark.shapes import Shape
from clada.benchmark.timing import measure
from clada.benchmark.whole_model import model_contenders, opened_model

# The contenders for a number of tokens, ours with these shares of neurons beside dense.
_Make = Callable[[int, tuple[float, ...]], list[Contender]]


def _decode(shape: Shape, what: str, context: int, make: _Make, settings: BenchSettings) -> Table:
    contenders = make(1, settings.active)
    bandwidth = partial(read_bandwidth, settings.threads)
    samples = measure(contenders, settings.rounds, bandwidth, f"{shape.name} {what}, decode")
    return Table(shape.name, what, "decode", 1, context, rows(contenders, samples))


def _prefill(shape: Shape, what: str, make: _Make, settings: BenchSettings) -> Table:
    """Time prefill: many tokens at once, bound by arithmetic, with nothing sparse."""
    contenders = make(settings.prefill_tokens, ())
    samples = measure(contenders, settings.prefill_rounds, None, f"{shape.name} {what}, prefill")
    return Table(shape.name, what, "prefill", settings.prefill_tokens, 0, rows(contenders, samples))


def layer_tables(shape: Shape, settings: BenchSettings) -> Iterator[Table]:
    """Measure one feed-forward layer."""
    with opened_layer(shape, settings) as layer:
        make = partial(layer_contenders, layer)
        yield _decode(shape, "layer", 0, make, settings)
        yield _prefill(shape, "layer", make, settings)


def linears_tables(shape: Shape, settings: BenchSettings) -> Iterator[Table]:
    """Measure the linear layers of one decoder layer."""
    with opened_linears(shape, settings) as linears:
        make = partial(linears_contenders, linears)
        yield _decode(shape, "linears", 0, make, settings)
        yield _prefill(shape, "linears", make, settings)


def model_tables(shape: Shape, settings: BenchSettings) -> Iterator[Table]:
    """Measure a whole model."""
    with opened_model(shape, settings) as model:
        make = partial(model_contenders, model)
        yield _decode(shape, "model", settings.context, make, settings)
        yield _prefill(shape, "model", make, settings)
