"""Check of a parsed network's ops: plugins, or their function bodies."""

from collections import Counter
from typing import Any

from clada.contract.onnx_wire import Node
from clada.errors import CladaError

_KINDS = {True: "a plugin", False: "its function body"}


def _is_plugin(trt: Any, layer: Any) -> bool:
    # PLUGIN, PLUGIN_V2, PLUGIN_V3: whatever generation, it is not the body.
    return any(layer.type == kind for name, kind in trt.LayerType.__members__.items() if name.startswith("PLUGIN"))


def check_imported(trt: Any, network: Any, nodes: list[Node], plugins: bool) -> str:
    """Check that every op of ours was imported as requested.

    A node's first output keeps its name in the network, so the layer that gives it is the plugin, or the last of the
    body.

    Args:
        trt: The module.
        network: Network from the parser.
        nodes: Our nodes of the graph.
        plugins: Whether plugins were asked for, or function bodies.

    Returns:
        A line on the imported ops.

    Raises:
        CladaError: A node was imported as the other, or is not to be found.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(slot).name: layer for layer in layers for slot in range(layer.num_outputs)}
    for node in nodes:
        if node.outputs[0] not in makers:
            raise CladaError(
                f"{trt.__name__} {trt.__version__} imported {node.op} node {node.name} as neither plugin nor body: "
                f"nothing in the network gives {node.outputs[0]}"
            )
        found = _is_plugin(trt, makers[node.outputs[0]])
        if found != plugins:
            raise CladaError(
                f"{trt.__name__} {trt.__version__} imported {node.op} node {node.name} as {_KINDS[found]}, and "
                f"{_KINDS[plugins]} was asked for; choose with --kernels"
            )
    counts = Counter(node.op for node in nodes)
    listed = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    return f"{listed}: all imported as {'plugins' if plugins else 'function bodies'}"
