"""Answers that every plugin must give to TensorRT, whatever its kernels run on and whoever loaded it."""

import itertools
from collections.abc import Iterator, Mapping

from clada.ops import PLUGIN_ATTRIBUTES
from clada.ops.record import FLOAT_TYPES, Op
from gpu_suite.plugin_probe import Plugin, PluginLibrary, TensorSpec, tensors_of

Fields = dict[str, str | float]


def default_plugin(library: PluginLibrary, op: Op) -> Plugin:
    plugin = library.create(op, {attribute.name: attribute.default for attribute in op.attributes})
    assert plugin is not None
    return plugin


def all_fields(op: Op) -> Iterator[Fields]:
    """Fields with every choice there is."""
    names = [attribute.name for attribute in op.attributes]
    for values in itertools.product(*(attribute.choices or (0.25, 0.0) for attribute in op.attributes)):
        yield dict(zip(names, values, strict=True))


def complete(op: Op, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes with those of axes that no input has, for the default attributes."""
    return {**sizes, **op.output_sizes(sizes, {attribute.name: attribute.default for attribute in op.attributes})}


def sizes_of(op: Op) -> dict[str, int]:
    """A different size for every axis, such that quantized weights fit the default attributes."""
    axes = dict.fromkeys(axis for spec in op.inputs for axis in spec.axes)
    sizes = {axis: 2 + i for i, axis in enumerate(axes)}
    if "P" in axes:
        bits, block_size = (attribute.default for attribute in op.attributes[:2])
        blocks = next(spec.axes[1] for spec in op.inputs if spec.dtype == "float16")
        width = sizes[blocks] * block_size
        sizes["P"] = width * bits // 8
        if "F" in axes:
            sizes["D"] = width
    return complete(op, sizes)


def input_shapes(op: Op, sizes: Mapping[str, int]) -> list[list[int]]:
    return [[sizes[axis] for axis in spec.axes] for spec in op.inputs]


def check_fields(library: PluginLibrary, op: Op, fields: Fields) -> None:
    """Check that fields survive serializing and cloning, and that an engine's make the plugin again."""
    plugin = library.create(op, {**fields, **PLUGIN_ATTRIBUTES})
    assert plugin is not None
    for copy in (plugin, plugin.clone(), plugin.attach()):
        assert copy.name == op.name
        assert copy.serialized() == fields
    from_engine = library.create(op, plugin.clone().serialized(), from_engine=True)
    assert from_engine is not None
    assert from_engine.serialized() == fields


def check_output_shapes(library: PluginLibrary, op: Op) -> None:
    plugin, known = default_plugin(library, op), sizes_of(op)
    # None is known, and each but one is.
    for sizes in (known, {a: -n for a, n in known.items()}, *({**known, a: -n} for a, n in known.items())):
        expected = [[complete(op, sizes)[axis] for axis in spec.axes] for spec in op.outputs]
        assert plugin.output_shapes(input_shapes(op, sizes)) == expected


def check_output_types(library: PluginLibrary, op: Op, float_type: str) -> None:
    inputs, outputs = (
        [float_type if spec.dtype == "T" else spec.dtype for spec in specs] for specs in (op.inputs, op.outputs)
    )
    assert default_plugin(library, op).output_types(inputs) == [library.data_type(name) for name in outputs]


def check_formats(library: PluginLibrary, op: Op, float_type: str) -> None:
    """Check that each tensor takes the types and formats that fit those before it, and no others."""
    plugin, right = default_plugin(library, op), tensors_of(op, sizes_of(op), float_type)
    for i, spec in enumerate((*op.inputs, *op.outputs)):
        for dtype, linear in itertools.product((*FLOAT_TYPES, "int8", "int32", "int64", "bool"), (True, False)):
            # What comes after a position is garbage when TensorRT asks.
            after = [TensorSpec(tensor.shape, "int8", linear=False) for tensor in right[i + 1 :]]
            fits = dtype in FLOAT_TYPES if i == 0 else dtype == right[i].dtype
            tensors = [*right[:i], TensorSpec(right[i].shape, dtype, linear=linear), *after]
            assert plugin.supports(i, tensors) == (fits and linear), (spec.name, dtype, linear)
    assert plugin.configure(right) == 0
