"""KV cache of an engine: written in place, where the graph can be cut so, or copied."""

from typing import Any

from clada.contract.engine_record import COPIED, IN_PLACE
from clada.ops import graph_names


def window_of(config: dict[str, Any]) -> int | None:
    """Sliding window of a model's attention, in tokens, by its config.json; None where it reaches all."""
    window = config.get("sliding_window")
    return None if window is None or config.get("use_sliding_window") is False else int(window)


def cut_cache(trt: Any, network: Any, window: int | None, capacity: int) -> tuple[str, str]:
    """Make the new keys and values outputs of a network, in the place of those concatenated to the past.

    What runs the engine then copies them into free slots of the cache that it reads. Attention sees all slots, in any
    order, as positions are in the keys already; but a mask that reaches back a window counts slots.

    Args:
        trt: The module.
        network: As parsed; changed where it can be cut.
        window: See `window_of`.
        capacity: Slots of the cache.

    Returns:
        The kind of cache, and a line that says why.
    """
    if window is not None and window <= capacity:
        return COPIED, f"cache: copied by each step, as attention reaches back {window} tokens"
    layers = (network.get_layer(index) for index in range(network.num_layers))
    producers = {layer.get_output(0).name: layer for layer in layers if layer.type == trt.LayerType.CONCATENATION}
    outputs = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    cuts = []
    for layer in range(len(outputs)):
        for past, present in zip(graph_names.past(layer), graph_names.present(layer), strict=True):
            if present not in outputs:
                continue
            joined = producers.get(present)
            if joined is None or joined.num_inputs != 2 or joined.get_input(0).name != past:
                return COPIED, f"cache: copied by each step, as {present} is not {past} with new ones at its end"
            cuts.append((present, joined.get_input(1)))
    for name, new in cuts:
        output = outputs[name]
        network.unmark_output(output)
        output.name = f"past_and_{name}"
        new.name = name
        network.mark_output(new)
    return IN_PLACE, "cache: written in place"
