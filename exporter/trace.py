"""Traces a patched model into ONNX: one graph for prefill and decode, any batch, any lengths."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor

from clada.exporter.decoder import Decoder, LoadMap
from clada.exporter.patch import Sparsity
from clada.exporter.steps import constants, random_step
from clada.plugins import graph
from clada.plugins.errors import CladaError
from clada.plugins.onnx import function_proto, translation
from clada.plugins.onnx.functions import MINIMUM_OPSET
from clada.plugins.ops import DOMAIN, OPS
from clada.plugins.torch import torch_op
from clada.runtime.artefact import data_name

DEFAULT_OPSET = 20
MAXIMUM_OPSET = 23


def _dynamic_shapes(layers: int) -> dict[str, Any]:
    batch, here, before = graph.BATCH_SIZE, graph.SEQUENCE_LENGTH, graph.PAST_SEQUENCE_LENGTH
    return {
        "input_ids": {0: batch, 1: here},
        "attention_mask": {0: batch, 1: graph.TOTAL_SEQUENCE_LENGTH},
        "position_ids": {0: batch, 1: here},
        "past_logits": {0: batch},
        "pools": [{0: batch}] * layers,
        "past": [({0: batch, 2: before}, {0: batch, 2: before})] * layers,
        "thresholds": [None] * layers,
        graph.SURPRISAL_KNOTS: None,
        graph.ENTROPY_KNOTS: None,
        graph.SCALE_KNOTS: None,
        graph.REANALYSIS_LOAD: None,
    }


def _contract_dims(name: str) -> tuple[str | None, ...]:
    """Names of an input's dimensions by the contract, None where the size is fixed."""
    shapes = _dynamic_shapes(1)
    for prefix, key in (("pool.", "pools"), ("past_key_values.", "past")):
        if name.startswith(prefix):
            spec = shapes[key][0][0] if key == "past" else shapes[key][0]
            break
    else:
        spec = shapes.get(name)
    return () if spec is None else tuple(spec.get(axis) for axis in range(max(spec) + 1))


def constant_names(layers: int) -> list[str]:
    """Names of the calibrated initializers, in the order of Decoder.forward's arguments."""
    knots = [graph.SURPRISAL_KNOTS, graph.ENTROPY_KNOTS, graph.SCALE_KNOTS, graph.REANALYSIS_LOAD]
    return [graph.threshold(n) for n in range(layers)] + knots


def input_names(layers: int) -> list[str]:
    """Names of the graph's inputs, in order."""
    step = [graph.INPUT_IDS, graph.ATTENTION_MASK, graph.POSITION_IDS, graph.PAST_LOGITS]
    return step + [graph.pool(n) for n in range(layers)] + [name for n in range(layers) for name in graph.past(n)]


def output_names(layers: int) -> list[str]:
    """Names of the graph's outputs, in order."""
    present = [name for n in range(layers) for name in graph.present(n)]
    scores = [graph.score(n) for n in range(layers)]
    return [graph.LOGITS, *present, *scores, graph.LOAD, graph.SURPRISAL, graph.ENTROPY, graph.ACTIVE]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's advice to the authors of exporters; errors are raised all the same."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _bake(model: onnx_ir.Model, values: dict[str, Tensor]) -> None:
    """Turn calibrated inputs into initializers of the same name.

    They are traced as inputs because the exporter merges initializers of equal value, and names with them.
    """
    for value in list(model.graph.inputs):
        if value.name in values:
            model.graph.inputs.remove(value)
            value.const_value = onnx_ir.tensor(values[value.name].numpy(), name=value.name)
            model.graph.register_initializer(value)


def _attach_functions(model: onnx_ir.Model, opset: int) -> None:
    for op in OPS.values():
        nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, op.name)]
        variants = {tuple((a.name, node.attributes[a.name].value) for a in op.attributes) for node in nodes}
        if len(variants) > 1:
            raise CladaError(f"{op.name} is used with different attributes in one model: {sorted(variants)}")
        for variant in variants:
            function = onnx_ir.serde.deserialize_function(function_proto(op, dict(variant), opset))
            model.functions[function.identifier()] = function


def _clean(model: onnx_ir.Model) -> None:
    """Give the dynamic sizes the contract's names and drop the exporter's notes, which hold paths of this machine."""
    sizes = {
        str(dim): name
        for value in model.graph.inputs
        for dim, name in zip(value.shape or (), _contract_dims(str(value.name)), strict=False)
        if name and not isinstance(dim, int)
    }
    totals = {f"{graph.PAST_SEQUENCE_LENGTH} + {graph.SEQUENCE_LENGTH}"}
    totals.add(f"{graph.SEQUENCE_LENGTH} + {graph.PAST_SEQUENCE_LENGTH}")

    def renamed(dim: int | onnx_ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int) or dim.value is None:
            return dim if isinstance(dim, int) else None
        text = re.sub(r"\w+", lambda match: sizes.get(match[0], match[0]), str(dim))
        return graph.TOTAL_SEQUENCE_LENGTH if text in totals else text

    nodes = list(model.graph.all_nodes())
    for value in [*model.graph.inputs, *(output for node in nodes for output in node.outputs)]:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([renamed(dim) for dim in value.shape])
        value.metadata_props.clear()
    holders: list[Any] = [model, model.graph, *nodes, *model.graph.initializers.values()]
    for holder in holders:
        holder.metadata_props.clear()
    for node in nodes:
        node.doc_string = None


def check_opset(opset: int) -> None:
    """Raise CladaError for a version of the standard ops that the graph cannot be written in."""
    if not MINIMUM_OPSET <= opset <= MAXIMUM_OPSET:
        raise CladaError(f"opset {opset} is not supported; choose one from {MINIMUM_OPSET} to {MAXIMUM_OPSET}")


def trace(
    model: Any, sparsity: Sparsity, load_map: LoadMap, *, opset: int = DEFAULT_OPSET, all_logits: bool = False
) -> onnx_ir.Model:
    """Trace a patched model.

    Args:
        model: A causal LM after `sparsify`, in the dtype to export.
        sparsity: Its state, with the calibrated thresholds.
        load_map: The load signal's calibrated constants.
        opset: Version of the standard ops.
        all_logits: Give logits for all positions, not only the last.

    Returns:
        The ONNX model; its weights still share the torch model's memory.

    Raises:
        CladaError: The opset is not supported.
    """
    check_opset(opset)
    layers = len(sparsity.thresholds)
    decoder = Decoder(model, sparsity, load_map.surprisal_weight, all_logits).eval()
    # Sizes of 0 and 1 would be taken for constants.
    arguments = random_step(model, batch=2, sequence=3, past=5) | constants(sparsity, load_map)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            decoder,
            (),
            kwargs=arguments,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(layers),
            input_names=input_names(layers) + constant_names(layers),
            output_names=output_names(layers),
            custom_translation_table={torch_op(op): translation(op) for op in OPS.values()},
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    traced = program.model
    knots = [load_map.surprisal_knots, load_map.entropy_knots, load_map.scale_knots, load_map.reanalysis_load]
    _clean(traced)
    _bake(traced, dict(zip(constant_names(layers), arguments["thresholds"] + knots, strict=True)))
    _attach_functions(traced, opset)
    traced.producer_name, traced.graph.name = DOMAIN, str(model.config.model_type)
    return traced


def save(traced: onnx_ir.Model, path: Path) -> None:
    """Write a model, with its weights in a file beside it."""
    onnx_ir.save(traced, path, external_data=data_name(path))
