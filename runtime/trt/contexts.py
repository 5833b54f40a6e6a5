"""Execution contexts of a TensorRT engine, driven by bindings as ONNX Runtime's sessions are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.errors import CladaError
from clada.ops import graph_names

# By the names of TensorRT's types.
_NUMPY_TYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT32": np.int32,
    "INT64": np.int64,
}

Shape = tuple[int, ...]


@dataclass
class EngineBinding:
    """Shapes and addresses of a run's inputs and outputs, with the methods of ONNX Runtime's IOBinding."""

    inputs: dict[str, tuple[Shape, int]] = field(default_factory=dict)
    outputs: dict[str, tuple[Shape, int]] = field(default_factory=dict)
    # Of the last run that was to be captured: how often the context had been reshaped, and the places.
    ran: tuple[int, tuple[Any, Any]] = (-1, ({}, {}))
    # What launches the graph of such runs, if there is one yet.
    launch: Callable[[], None] | None = None

    def bind_input(
        self, name: str, device: str, index: int, dtype: npt.DTypeLike, shape: Sequence[int], address: int
    ) -> None:
        """Bind an input to an address."""
        self.inputs[name] = tuple(shape), address

    def bind_output(
        self, name: str, device: str, index: int, dtype: npt.DTypeLike, shape: Sequence[int], address: int
    ) -> None:
        """Bind an output to an address."""
        self.outputs[name] = tuple(shape), address

    def places(self) -> tuple[Any, Any]:
        """Copy of all current bindings."""
        return dict(self.inputs), dict(self.outputs)


@dataclass
class _Context:
    """Execution context, and the shapes and addresses set last."""

    context: Any
    profile: str
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    reshaped: int = 0

    def give(self, binding: EngineBinding) -> None:
        before = self.reshaped
        for name, (shape, _) in binding.inputs.items():
            if self.shapes.get(name) != shape:
                self._check(self.context.set_input_shape(name, shape), name, f"shape {list(shape)}")
                self.shapes[name] = shape
                self.reshaped = before + 1
        for bound in (binding.inputs, binding.outputs):
            for name, (_, address) in bound.items():
                if self.addresses.get(name) != address:
                    self._check(self.context.set_tensor_address(name, address), name, f"address {address:#x}")
                    self.addresses[name] = address
        if self.reshaped > before:
            self._check_outputs(binding)

    def _check(self, taken: bool, name: str, value: str) -> None:
        if not taken:
            self.forget()
            raise CladaError(f"the engine's {self.profile} profile does not take {name} at {value}: build it again")

    def _check_outputs(self, binding: EngineBinding) -> None:
        """Raise CladaError where an output would not fill the memory bound to it."""
        for name, (room, _) in binding.outputs.items():
            shape = tuple(self.context.get_tensor_shape(name))
            if shape != room:
                self.forget()
                raise CladaError(
                    f"the engine gives {name} of shape {list(shape)} where {list(room)} is expected: build it again, "
                    "of a model that gives the last position's logits alone"
                )

    def forget(self) -> None:
        """Forget all that was set, as after an error the context's state is unknown."""
        self.shapes.clear()
        self.addresses.clear()


class EngineSession:
    """Engine with an execution context for each of its optimization profiles.

    Args:
        engine: As TensorRT deserialized it.
        contexts: One for each profile, in order.
        stream: Stream of the runs, as CUDA names it.
        profiles: The profiles' names.
        said: Returns TensorRT's last logged error.
        capture: See `cuda_driver.Gpu.capture`.

    Raises:
        CladaError: TensorRT does not set a profile.
    """

    def __init__(
        self,
        engine: Any,
        contexts: Sequence[Any],
        stream: int,
        profiles: Sequence[str],
        said: Callable[[], str],
        capture: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        self._stream, self._said, self._capture = stream, said, capture
        self._contexts = {name: _Context(context, name) for name, context in zip(profiles, contexts, strict=True)}
        for index, (name, context) in enumerate(zip(profiles, contexts, strict=True)):
            if not context.set_optimization_profile_async(index, stream):
                raise CladaError(f"TensorRT cannot use the engine's {name} profile: {said()}")
        self.inputs: dict[str, tuple[Shape, npt.DTypeLike]] = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name).name == "INPUT":
                dtype = _NUMPY_TYPES[engine.get_tensor_dtype(name).name]
                self.inputs[name] = tuple(engine.get_tensor_shape(name)), dtype
        # The accumulation of a running score has no such output.
        named = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        self.sites = int(engine.get_tensor_shape(graph_names.ACTIVE)[0]) if graph_names.ACTIVE in named else 0
        self._engine = engine  # contexts refer to it

    def io_binding(self) -> EngineBinding:
        """Create an empty binding."""
        return EngineBinding()

    def run(self, binding: EngineBinding, profile: str, captured: bool = False) -> None:
        """Put a run into the stream: its inputs and outputs must stay alive until it is done.

        Args:
            binding: All inputs and outputs of the engine.
            profile: Name of the profile that has room for the inputs.
            captured: Whether many runs of this binding have these shapes and addresses, so that a CUDA graph can hold
                them: the first runs as it is, as TensorRT asks, the second is captured, the others are that graph.

        Raises:
            CladaError: The profile has no room for them, an output has another shape than is bound, or TensorRT fails.
        """
        context = self._contexts[profile]
        again = captured and binding.ran == (context.reshaped, binding.places())
        if again and binding.launch:
            binding.launch()
            return
        context.give(binding)
        if again and self._can_be_captured(context):
            binding.launch = self._capture(partial(self._enqueue, context))
            binding.launch()
            return
        self._enqueue(context)
        if captured:
            binding.ran, binding.launch = (context.reshaped, binding.places()), None

    def _can_be_captured(self, context: _Context) -> bool:
        """Whether a run can be captured: only TensorRT for RTX may answer no, while it is still compiling."""
        asked = getattr(context.context, "is_stream_capturable", None)
        return asked is None or bool(asked(self._stream))

    def _enqueue(self, context: _Context) -> None:
        if not context.context.execute_async_v3(self._stream):
            context.forget()
            raise CladaError(f"TensorRT failed to run the engine's {context.profile} profile: {self._said()}")

    def run_with_iobinding(self, binding: EngineBinding) -> None:
        """Run an engine of one profile."""
        (profile,) = self._contexts
        self.run(binding, profile)
