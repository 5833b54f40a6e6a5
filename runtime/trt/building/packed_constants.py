"""Quantized weights of function bodies in a TensorRT network, packed as TensorRT keeps them."""

import re
from collections.abc import Iterator
from typing import Any

from clada.errors import CladaError

# What an op's function body calls the weights that it has unpacked; the parser numbers all but the first.
_UNPACKED = re.compile(r"w(_\w+)?_wide(_\d+)?")


def keep_packed(trt: Any, network: Any) -> int:
    """Make TensorRT dequantize the weights of function bodies, which it does in its products.

    Without this it cannot build the engine: of 8-bit constants it lets nothing but a DequantizeLinear or a plugin read.

    Args:
        trt: The module.
        network: Network from the parser.

    Returns:
        The number of matrices found.

    Raises:
        CladaError: A matrix is not unpacked from codes and scales.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(slot).name: layer for layer in layers for slot in range(layer.num_outputs)}
    ends = [layer for layer in layers if _UNPACKED.fullmatch(layer.get_output(0).name)]
    for end in ends:
        matrix = end.get_output(0)
        constants = [layer for layer in _behind(makers, end) if layer.type == trt.LayerType.CONSTANT]
        by_type = {layer.get_output(0).dtype: layer for layer in constants if len(layer.get_output(0).shape) > 1}
        codes, scales = by_type.get(trt.int8), by_type.get(trt.float16)
        if codes is None or scales is None:
            raise CladaError(f"{trt.__name__} {trt.__version__}: {matrix.name} is not unpacked from codes and scales")
        scale = scales.get_output(0)
        if matrix.dtype != scale.dtype:
            scale = network.add_cast(scale, matrix.dtype).get_output(0)
        packed = _codes(trt, network, codes, tuple(matrix.shape))
        end.set_input(0, network.add_dequantize(packed, scale, matrix.dtype).get_output(0))
    return len(ends)


def _behind(makers: dict[str, Any], layer: Any) -> Iterator[Any]:
    """Yield a layer and all layers upstream of it."""
    seen: set[str] = set()
    waiting = [layer]
    while waiting:
        found = waiting.pop()
        yield found
        names = [found.get_input(slot).name for slot in range(found.num_inputs) if found.get_input(slot) is not None]
        new = [name for name in names if name in makers and name not in seen]
        seen.update(new)
        waiting += [makers[name] for name in new]


def _codes(trt: Any, network: Any, constant: Any, shape: tuple[int, int]) -> Any:
    """Codes of a matrix; 4-bit ones in TensorRT's own type, which is packed as ours."""
    if tuple(constant.get_output(0).shape) == shape:
        return constant.get_output(0)
    constant.__class__ = trt.IConstantLayer  # the binding's way to a layer's own interface
    held = constant.weights  # in the network's memory
    return network.add_constant(shape, trt.Weights(trt.int4, held.ctypes.data, shape[0] * shape[1])).get_output(0)
