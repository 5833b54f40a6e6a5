"""Checks of the calibrated values in a graph, so that nonsensical values are an error and not a wrong text."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clada.contract.graph_constants import Floats, GraphConstants
from clada.contract.manifest import Manifest
from clada.contract.onnx_wire import Node, external_files, inputs_of, nodes_of
from clada.errors import CladaError
from clada.ops import DOMAIN, LOAD_SIGNAL, OPS, OPS_OF_CPUS, graph_names

_HIGHEST_LOAD = 2.0  # above 1 where no load opens a pool


class _WrongError(ValueError):
    """Defect of a graph."""


def check_graph(path: Path, content: bytes, data: Path, manifest: Manifest) -> None:
    """Check that a graph takes its weights from the checked files, and that its calibrated values make sense.

    Args:
        path: Path of the ONNX file, for error messages.
        content: Content of that file.
        data: The file of its weights.
        manifest: Manifest of the artifact.

    Raises:
        CladaError: It is no ONNX file that clada wrote, has tensors in other files, or a value makes no sense.
    """
    try:
        _check(content, data, manifest)
    except _WrongError as error:
        raise CladaError(f"{path} {error}; export it again") from error
    except (ValueError, IndexError, RecursionError, OverflowError) as error:
        raise CladaError(f"{path} is no ONNX file that clada-export wrote ({error}); export it again") from error
    except OSError as error:
        raise CladaError(f"cannot read {data}: {error.strerror or error}") from error


def _check(content: bytes, data: Path, manifest: Manifest) -> None:
    others = external_files(content) - {data.name}
    if others:
        raise _WrongError(f"has tensors in {sorted(others)[0]!r:.80}, and its weights belong in {data.name}")
    nodes = nodes_of(content, DOMAIN)
    _check_nodes(nodes, manifest)
    _check_inputs(inputs_of(content), manifest)
    for what, problem in _problems(GraphConstants(content, data), nodes, manifest):
        raise _WrongError(f"has {what} that {problem}")


def _check_nodes(nodes: list[Node], manifest: Manifest) -> None:
    found = {name: sum(node.op == name for node in nodes) for name in {node.op for node in nodes}}
    expected = {manifest.sparse_op: len(manifest.widths), LOAD_SIGNAL.name: 1}
    expected |= {name: found[name] for name in OPS_OF_CPUS if 0 < found.get(name, 0) <= manifest.model.layers}
    if found != expected:
        raise _WrongError(f"has the ops {found}, and its manifest tells of {expected}")
    # What is checked by name below is what the ops read.
    thresholds = {graph_names.threshold(site) for site in range(len(manifest.widths))}
    if {_given(node, "threshold") for node in nodes if node.op == manifest.sparse_op} != thresholds:
        raise _WrongError(f"has nodes of {manifest.sparse_op} without thresholds of their own")
    signal = next(node for node in nodes if node.op == LOAD_SIGNAL.name)
    for name in (graph_names.SURPRISAL_KNOTS, graph_names.ENTROPY_KNOTS, graph_names.SCALE_KNOTS):
        if _given(signal, name) != name:
            raise _WrongError(f"has a load signal that does not read its {name}")


def _given(node: Node, name: str) -> str:
    """Name of the tensor that a node takes as a given input of its op."""
    at = [spec.name for spec in OPS[node.op].inputs].index(name)
    return node.inputs[at] if at < len(node.inputs) else ""


def _check_inputs(inputs: dict[str, tuple[int | None, ...]], manifest: Manifest) -> None:
    expected: dict[str, tuple[int, ...]] = {
        graph_names.pool(layer): (neurons,) for layer, neurons in enumerate(manifest.model.neurons)
    }
    expected[graph_names.PAST_LOGITS] = (manifest.model.vocabulary_size,)
    if manifest.inputs is not None:
        expected[graph_names.EFFORT] = ()
    for name, sizes in expected.items():
        shape = inputs.get(name)
        if shape is None or shape[1:] != sizes or len(shape) != 1 + len(sizes):
            raise _WrongError(f"has the input {name} of sizes {shape}, and its manifest tells of {list(sizes)} a text")
    layers = manifest.model.layers
    if graph_names.past(layers)[0] in inputs or graph_names.past(layers - 1)[0] not in inputs:
        raise _WrongError(f"has not the {layers} layers that its manifest tells of")
    if graph_names.pool(len(manifest.model.neurons)) in inputs:
        raise _WrongError(f"has pools of other layers than the {len(manifest.model.neurons)} of its manifest")


def _read(values: GraphConstants, name: str, *shape: int | None) -> Floats:
    """Read a constant of this shape; None stands for any size of 2 or more."""
    found = values.shape(name)
    fits = len(found) == len(shape) and all(
        size == wanted if wanted is not None else size >= 2 for size, wanted in zip(found, shape, strict=True)
    )
    if not fits:
        sizes = [wanted if wanted is not None else "2 or more" for wanted in shape]
        raise _WrongError(f"has {name} of sizes {list(found)}, and {sizes} is expected")
    return values.read(name)


def _problems(values: GraphConstants, nodes: list[Node], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield each value that makes no sense, with the reason."""
    model, calibration = manifest.model, manifest.calibration
    for site, width in enumerate(manifest.widths):
        name = graph_names.threshold(site)
        yield from _unless(name, _numbers(_read(values, name, width), at_least=0))
    for layer in range(model.layers):
        if (name := graph_names.compensation(layer)) in values:
            yield from _unless(name, _numbers(_read(values, name, model.hidden_size)))
    for name in (graph_names.SURPRISAL_KNOTS, graph_names.ENTROPY_KNOTS):
        yield from _unless(name, _rising(_read(values, name, None)))
    knots = _read(values, graph_names.SCALE_KNOTS, None)
    yield from _unless(graph_names.SCALE_KNOTS, _falling(knots))
    if not np.array_equal(knots, np.array(calibration.scale_knots, np.float32)):
        yield graph_names.SCALE_KNOTS, "are not those of its manifest"
    if manifest.inputs is None:
        load = _read(values, graph_names.REANALYSIS_LOAD)
        yield from _unless(graph_names.REANALYSIS_LOAD, _numbers(load, at_least=0, at_most=_HIGHEST_LOAD))
        if load != np.float32(calibration.reanalysis_load):
            yield f"{graph_names.REANALYSIS_LOAD} {load}", f"is not its manifest's {calibration.reanalysis_load}"
    else:
        shares = _read(values, graph_names.ROW_SHARE, len(manifest.widths))
        if not np.allclose(shares, manifest.inputs.row_shares, rtol=1e-5):
            yield graph_names.ROW_SHARE, "does not follow from the products of its manifest"
    if graph_names.TOKEN_SCALE in values:
        table = _read(values, graph_names.TOKEN_SCALE, model.vocabulary_size)
        yield from _unless(graph_names.TOKEN_SCALE, _numbers(table, at_least=0))
    for site, width in enumerate(manifest.widths):
        names, factors = graph_names.anticipation(site), manifest.probes.get(site)
        if factors is not None or any(name in values for name in names):
            probed = model.hidden_size if manifest.inputs is None else width
            yield from _anticipation_problems(values, names, probed, factors)
    name = LOAD_SIGNAL.attributes[0].name
    weight = next(dict(node.floats).get(name, math.nan) for node in nodes if node.op == LOAD_SIGNAL.name)
    yield from _unless(f"{name} {weight}", _numbers(np.array([weight], np.float32), at_least=0, at_most=1))


def _anticipation_problems(
    values: GraphConstants, names: list[str], width: int, in_manifest: tuple[float, ...] | None
) -> Iterator[tuple[str, str]]:
    weight, load_weight, bias, knots, factors = names
    for name, shape in ((weight, (width,)), (load_weight, ()), (bias, ())):
        yield from _unless(name, _numbers(_read(values, name, *shape)))
    at = _read(values, knots, None)
    yield from _unless(knots, _rising(at))
    found = _read(values, factors, len(at))
    yield from _unless(factors, _falling(found))
    if in_manifest is None:
        yield weight, "is of a probe that its manifest does not tell of"
    elif not np.array_equal(found, np.array(in_manifest, np.float32)):
        yield factors, "are not those of its manifest"


def _unless(what: str, problem: str) -> Iterator[tuple[str, str]]:
    if problem:
        yield what, problem


def _numbers(values: Floats, at_least: float = -math.inf, at_most: float = math.inf) -> str:
    """Describe the defect of values that must be finite and within a range; empty where there is none."""
    if not np.isfinite(values).all():
        return f"holds {values[~np.isfinite(values)].flat[0]}, which is no finite number"
    for wrong, limit in ((values < at_least, f"below {at_least:g}"), (values > at_most, f"above {at_most:g}")):
        if wrong.any():
            return f"holds {values[wrong].flat[0]:g}, {limit}"
    return ""


def _rising(values: Floats) -> str:
    return _numbers(values) or ("does not rise" if (np.diff(values) < 0).any() else "")


def _falling(values: Floats) -> str:
    return _numbers(values, at_least=0) or ("rises" if (np.diff(values) > 0).any() else "")
