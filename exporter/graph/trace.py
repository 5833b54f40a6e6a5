"""Tracing of a patched model into ONNX: one graph for prefill and decode, any batch, any lengths."""

import gc
import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from torch import Tensor

from clada.contract.artifact import data_name, in_place_name
from clada.errors import CladaError
from clada.exporter.defaults import DEFAULT_OPSET, MINIMUM_QUANTIZED_OPSET
from clada.exporter.graph.cached_attention import use_cached_attention
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import random_step
from clada.exporter.graph.gated_activation import use_gated_activation
from clada.exporter.graph.narrow_embedding import narrow_embedding
from clada.exporter.graph.ort_attention import check_in_place, in_place_attention
from clada.exporter.graph.residual_norms import add_within_norms
from clada.exporter.graph.rewrites import divide_by_roots, drop_reshapes
from clada.exporter.graph.static_sizes import state_known_sizes
from clada.exporter.graph.written_weights import product_weights, stand_in_embedding
from clada.exporter.model.alibi import alibi_by_length
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.rope import rope_by_length
from clada.exporter.quantization.merged_products import merge_products
from clada.exporter.quantization.packed import narrow, packed_weights
from clada.exporter.quantization.quantize import Quantized
from clada.ops import DOMAIN, OPS, OPS_OF_CPUS, graph_names
from clada.ops.onnx import function_proto, translation
from clada.ops.onnx.functions import MINIMUM_OPSET
from clada.ops.torch import torch_op

MAXIMUM_OPSET = 23


def _dims(in_place_cache: bool) -> dict[str, dict[int, str]]:
    """Names of the dynamic sizes, by axis, of each argument of a step; of a list, those of each of its tensors."""
    here = {1: graph_names.SEQUENCE_LENGTH}
    batch = {} if in_place_cache else {0: graph_names.BATCH_SIZE}
    return {
        "input_ids": batch | here,
        "attention_mask": batch | {1: graph_names.TOTAL_SEQUENCE_LENGTH},
        "position_ids": batch | here,
        "past_logits": batch,
        "effort": batch,
        "pools": batch,
        "past": batch | {2: graph_names.CACHE_CAPACITY if in_place_cache else graph_names.PAST_SEQUENCE_LENGTH},
    }


def _dynamic_shapes(layers: int, in_place_cache: bool, by_input: bool) -> dict[str, Any]:
    dims = _dims(in_place_cache)
    counts = {"effort": int(by_input), "pools": 0 if by_input else layers}
    lists = {name: [dims[name]] * count for name, count in counts.items()}
    return dims | lists | {"past": [(dims["past"], dims["past"])] * layers}


def _contract_dims(name: str, in_place_cache: bool) -> tuple[str | None, ...]:
    """Names of an input's dimensions by the contract, None where the size is fixed."""
    of_lists = {"pool.": "pools", "past_key_values.": "past"}
    argument = next((argument for prefix, argument in of_lists.items() if name.startswith(prefix)), name)
    spec = _dims(in_place_cache).get(argument)
    return tuple(spec.get(axis) for axis in range(max(spec) + 1)) if spec else ()


def input_names(layers: int, by_input: bool = False) -> list[str]:
    """Names of the graph's inputs, in order; those of a graph that skips inputs, or neurons."""
    step = [graph_names.INPUT_IDS, graph_names.ATTENTION_MASK, graph_names.POSITION_IDS, graph_names.PAST_LOGITS]
    steering = [graph_names.EFFORT] if by_input else [graph_names.pool(n) for n in range(layers)]
    return step + steering + [name for n in range(layers) for name in graph_names.past(n)]


def output_names(layers: int, by_input: bool = False) -> list[str]:
    """Names of the graph's outputs, in order; those of a graph that skips inputs, or neurons."""
    present = [name for n in range(layers) for name in graph_names.present(n)]
    scores = [] if by_input else [graph_names.score(n) for n in range(layers)]
    signals = [graph_names.LOAD, graph_names.SURPRISAL, graph_names.ENTROPY, graph_names.ACTIVE]
    return [graph_names.LOGITS, *present, *scores, *signals] + ([graph_names.READ] if by_input else [])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's messages to the authors of exporters; errors are raised all the same."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disable garbage collection within the context: among all that a trace makes it takes an eighth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _flat(constants: dict[str, Tensor | list[Tensor]]) -> list[Tensor]:
    return [tensor for value in constants.values() for tensor in (value if isinstance(value, list) else [value])]


def _bake(model: onnx_ir.Model, values: dict[str, onnx_ir.TensorProtocol]) -> None:
    """Turn inputs into initializers of the same name.

    They are traced as inputs because the exporter merges initializers of equal value, and names with them.
    """
    for value in list(model.graph.inputs):
        if value.name in values:
            model.graph.inputs.remove(value)
            value.const_value = values[value.name]
            model.graph.register_initializer(value)


def _attach_functions(model: onnx_ir.Model, opset: int) -> None:
    for op in [*OPS.values(), *OPS_OF_CPUS.values()]:
        nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, op.name)]
        variants = {tuple((a.name, node.attributes[a.name].value) for a in op.attributes) for node in nodes}
        # Attributes that a body reads from its node may differ.
        bodies = {
            function_proto(op, dict(variant), opset).SerializeToString(deterministic=True) for variant in variants
        }
        if len(bodies) > 1:
            raise CladaError(f"{op.name} is used with different attributes in one model: {sorted(variants)}")
        for body in bodies:
            function = onnx_ir.serde.deserialize_function(onnx.FunctionProto.FromString(body))
            model.functions[function.identifier()] = function


def _clean(model: onnx_ir.Model, in_place_cache: bool) -> None:
    """Give the dynamic sizes the contract's names and drop the exporter's notes, which hold paths of this machine."""
    sizes = {
        str(dim): name
        for value in model.graph.inputs
        for dim, name in zip(value.shape or (), _contract_dims(str(value.name), in_place_cache), strict=False)
        if name and not isinstance(dim, int)
    }
    totals = {f"{graph_names.PAST_SEQUENCE_LENGTH} + {graph_names.SEQUENCE_LENGTH}"}
    totals.add(f"{graph_names.SEQUENCE_LENGTH} + {graph_names.PAST_SEQUENCE_LENGTH}")

    def renamed(dim: int | onnx_ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int) or dim.value is None:
            return dim if isinstance(dim, int) else None
        text = re.sub(r"\w+", lambda match: sizes.get(match[0], match[0]), str(dim))
        return graph_names.TOTAL_SEQUENCE_LENGTH if text in totals else text

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


def check_opset(opset: int, quantized: bool = False) -> None:
    """Raise CladaError for an opset in which the graph cannot be written."""
    if quantized and opset < MINIMUM_QUANTIZED_OPSET:
        raise CladaError(
            f"opset {opset} knows no weights in blocks; with quantized weights choose one from "
            f"{MINIMUM_QUANTIZED_OPSET} to {MAXIMUM_OPSET}"
        )
    if not MINIMUM_OPSET <= opset <= MAXIMUM_OPSET:
        raise CladaError(f"opset {opset} is not supported; choose one from {MINIMUM_OPSET} to {MAXIMUM_OPSET}")


def trace(
    model: Any,
    calibrated: Calibrated,
    *,
    opset: int = DEFAULT_OPSET,
    all_logits: bool = False,
    in_place_cache: bool = False,
    quantized: Quantized | None = None,
    weights_in: torch.dtype | None = None,
) -> onnx_ir.Model:
    """Trace a patched model.

    Args:
        model: A causal LM after `sparsify` or `sparsify_products`, in the dtype to export.
        calibrated: The constants of the graph.
        opset: Version of the standard ops.
        all_logits: Give logits for all positions, not only the last.
        in_place_cache: For ONNX Runtime only and one text: keys and values are buffers that it writes into.
        quantized: The packed weights whose values the model holds; None where it is not quantized.
        weights_in: Type of the products' weights and of the embedding in the graph; None for the model's.

    Returns:
        The ONNX model; its weights are made from the torch model's as each is written.

    Raises:
        CladaError: The opset is not supported, the constants do not fit the model, or its attention cannot keep its
            cache in place.
    """
    check_opset(opset, quantized is not None)
    by_input = calibrated.row_share is not None
    decoder = Decoder(model, calibrated, all_logits, in_place_cache).eval()
    # Sizes of 0 and 1 would be taken for constants: right for the batch where it is to be 1, and only there.
    step = random_step(model, batch=1 if in_place_cache else 2, sequence=3, past=5)
    layers = len(step["past"])
    weights = product_weights(model, weights_in or model.dtype)
    table_in = weights_in if quantized is None else torch.float16
    constants = calibrated.tensors() | {"weights": [weight.stand_in for weight in weights]}
    # No list of None: torch takes one for the axes of a single input, and with four layers' for another input's.
    fixed: dict[str, Any] = {
        name: [{}] * len(value) if isinstance(value, list) else None for name, value in constants.items()
    }
    names = calibrated.names() + [weight.name for weight in weights]
    arguments = step | constants
    attention = in_place_attention(model) if in_place_cache else nullcontext()
    with _quiet(), _uncollected(), torch.no_grad(), rope_by_length(model), alibi_by_length(model), attention:
        if in_place_cache:
            # Refused here, its reason is not wrapped by the exporter; by the weights' values, which stand-ins have not.
            check_in_place(decoder, arguments | {"weights": []})
        with packed_weights(model, quantized), narrow_embedding(model, table_in), stand_in_embedding(model) as table:
            program = torch.onnx.export(
                decoder,
                (),
                kwargs=arguments,
                dynamo=True,
                dynamic_shapes=_dynamic_shapes(layers, in_place_cache, by_input) | fixed,
                input_names=input_names(layers, by_input) + names,
                output_names=output_names(layers, by_input),
                custom_translation_table={torch_op(op): translation(op) for op in OPS.values()},
                opset_version=opset,
                verbose=False,
            )
    assert program is not None
    traced = program.model
    state_known_sizes(traced)
    _clean(traced, in_place_cache)
    if quantized is not None:
        merge_products(traced)
        narrow(traced, quantized)
    if in_place_cache:
        divide_by_roots(traced)
        drop_reshapes(traced)
        add_within_norms(traced)
        use_cached_attention(traced)
        use_gated_activation(traced)
    baked = {
        name: onnx_ir.tensor(value.numpy(), name=name)
        for name, value in zip(calibrated.names(), _flat(calibrated.tensors()), strict=True)
    }
    _bake(traced, baked | {weight.name: weight.written for weight in weights})
    for name, tensor in table.items():
        traced.graph.initializers[name].const_value = tensor
    _attach_functions(traced, opset)
    traced.producer_name, traced.graph.name = DOMAIN, str(model.config.model_type)
    return traced


def save(traced: onnx_ir.Model, path: Path) -> None:
    """Write a model, with its weights in a file beside it."""
    onnx_ir.save(traced, path, external_data=data_name(path))


def _digest(tensor: onnx_ir.TensorProtocol) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data).digest()


def save_in_place(traced: onnx_ir.Model, model: Path) -> None:
    """Write a graph with an in-place cache beside a saved model; its weights are those in that model's data file.

    Weights are recognized by their bytes: the exporter transposes some and gives those names of its own.
    """
    tensors = [value.const_value for value in onnx_ir.load(model).graph.initializers.values()]
    stored = {_digest(tensor): tensor for tensor in tensors if isinstance(tensor, onnx_ir.ExternalTensor)}
    for name, value in traced.graph.initializers.items():
        ours = value.const_value
        assert ours is not None
        found = stored.get(_digest(ours))
        if found is not None:
            value.const_value = onnx_ir.ExternalTensor(
                found.location,
                found.offset,
                found.length,
                ours.dtype,
                name=name,
                shape=onnx_ir.Shape(ours.numpy().shape),
                base_dir=found.base_dir,
            )
    onnx_ir.save(traced, model.with_name(in_place_name(model)))
