"""Running score of the pools, on the device that computes the scores: a step copies three numbers per text there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clada.contract.onnx_wire import BOOL, FLOAT, INT32, Node, Vector, graph_bytes
from clada.contract.pool import Masks
from clada.ops import graph_names
from clada.runtime.models.memory import Array, Put, Slab
from clada.runtime.models.ort_errors import one_line_errors

# Inputs of the graph that are numbers of a text; the others are of its elements.
FACTORS = ("fade", "inside", "outside")


def accumulation() -> bytes:
    """Graph that adds one token: score · fade + used · (inside where the mask holds, outside elsewhere).

    All arrays are flat, f32[N]; factors are f32[B], and `text` i32[N] says which of them an element takes.
    """
    nodes = [Node("", "Gather", (name, "text"), (f"{name}_of_text",)) for name in FACTORS]
    nodes += [
        Node("", "Where", ("mask", "inside_of_text", "outside_of_text"), ("weight",)),
        Node("", "Mul", ("score", "fade_of_text"), ("faded",)),
        Node("", "Mul", ("used", "weight"), ("added",)),
        Node("", "Add", ("faded", "added"), ("sum",)),
    ]
    inputs = [Vector(name, FLOAT, "B") for name in FACTORS]
    inputs += [Vector("text", INT32, "N"), Vector("mask", BOOL, "N"), Vector("score", FLOAT, "N")]
    inputs += [Vector("used", FLOAT, "N")]
    return graph_bytes(nodes, inputs, Vector("sum", FLOAT, "N"))


class DeviceScore:
    """Running score in a device's memory; see `clada.contract.pool.RunningScore`.

    Args:
        session: Session of the graph `accumulation`.
        score: f32[B, F] for each layer.
        device: The device.
        place: See Slab.
    """

    def __init__(self, session: Any, score: Sequence[Array], device: str, place: Put | None = None) -> None:
        self._session, self._device, self._place = session, device, place
        shapes = {graph_names.score(layer): values.shape for layer, values in enumerate(score)}
        # Two, as not all that runs the graph takes one array as input and output: the first of them is read.
        self._scores = [self._slab(shapes, np.float32) for _ in range(2)]
        self._scores[0].write({graph_names.score(layer): values for layer, values in enumerate(score)})
        self._mask = self._slab(shapes, np.bool_)
        self._masks: Masks = []
        self._text = self._slab(shapes, np.int32)
        texts = len(score[0])
        self._text.write({name: np.arange(texts)[:, None].repeat(shape[1], 1) for name, shape in shapes.items()})
        self._factors = Slab(dict.fromkeys(FACTORS, ((texts,), np.float32)), device, place)
        self._bindings = [self._bound(*scores) for scores in (self._scores, self._scores[::-1])]

    def _bound(self, before: Slab, after: Slab) -> Any:
        binding = self._session.io_binding()
        for name in FACTORS:
            self._factors.bind_input(binding, name)
        binding.bind_input("text", *self._text.whole(np.int32))
        binding.bind_input("mask", *self._mask.whole(np.bool_))
        binding.bind_input("score", *before.whole(np.float32))
        binding.bind_output("sum", *after.whole(np.float32))
        return binding

    def _slab(self, shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Slab:
        return Slab({name: (shape, dtype) for name, shape in shapes.items()}, self._device, self._place)

    def __iter__(self) -> Iterator[Array]:
        """Copy the layers' scores into this process's memory."""
        return iter(self._scores[0].read().values())

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceScore":
        return DeviceScore(self._session, list(self), self._device, self._place)

    def add(self, used: Slab, masks: Masks, fade: Array, inside: Array, outside: Array) -> None:
        """See RunningScore; `used` holds the scores as this one does."""
        if len(masks) != len(self._masks) or any(new is not old for new, old in zip(masks, self._masks, strict=True)):
            self._mask.write({graph_names.score(layer): mask for layer, mask in enumerate(masks)})
            self._masks = list(masks)
        self._factors.write(dict(zip(FACTORS, (fade, inside, outside), strict=True)))
        self._bindings[0].bind_input("used", *used.whole(np.float32))
        with one_line_errors(self._device):
            self._session.run_with_iobinding(self._bindings[0])
        self._scores.reverse()
        self._bindings.reverse()
