"""A TensorRT engine and a GPU's memory, stood in for by ONNX Runtime and this process's memory.

The engine honors what TensorRT honors: shapes within a profile, inputs and outputs at the addresses given, work that
is done in the order of a stream and not before somebody waits for it. It refuses, by an assertion, what TensorRT would
not notice: memory that is not there any more, arrays that do not fit it or overlap.
"""
# ruff: noqa: D102  # what a method does is what its counterpart does

import ctypes
import weakref
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clada.contract.engine_record import IN_PLACE, EngineRecord, Profile
from clada.runtime.models.ort_cpu import NUMPY_TYPES, Execution, create_session
from clada.runtime.models.score import FACTORS, accumulation
from clada.runtime.trt.contexts import EngineSession
from clada.runtime.trt.engine_model import EngineModel
from clada.runtime.trt.engine_model_in_place import EngineInPlaceModel

ALIGNMENT = 256
STREAM = 7

Mode = Enum("Mode", ["INPUT", "OUTPUT"])
DataType = Enum("DataType", ["BOOL", "FLOAT", "HALF", "INT32", "INT64"])
_TYPES = {np.bool_: "BOOL", np.float32: "FLOAT", np.float16: "HALF", np.int32: "INT32", np.int64: "INT64"}


class HostMemory:
    """Stand-in for `runtime.models.memory.Memory`, with a stream that does its work when something is read."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.queue: list[Callable[[], None]] = []
        self.graphs = self.launches = 0

    def place(self, array: np.ndarray) -> "HostArray":
        placed = HostArray(self, array.shape, array.dtype)
        placed.update_inplace(array)
        return placed

    def empty(self, size: int) -> "HostArray":
        return HostArray(self, (size,), np.dtype(np.uint8))

    def copy(self, target: int, source: int, size: int) -> None:
        self.queue.append(lambda: self.view(target, size).__setitem__(slice(None), self.view(source, size)))

    def clear(self, address: int, size: int) -> None:
        self.queue.append(lambda: self.view(address, size).fill(0))

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            self.copy(target + row * target_pitch, source + row * source_pitch, width)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        before, self.queue = self.queue, []
        enqueue()
        captured, self.queue = self.queue, before
        self.graphs += 1

        def launch() -> None:
            self.launches += 1
            self.queue.extend(captured)

        return launch

    def view(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address, which must be of one piece of memory that is still there."""
        inside = any(start <= address and address + size <= start + room for start, room in self.alive.items())
        assert inside, f"{size} bytes at {address:#x} are of no memory that is there"
        return np.frombuffer((ctypes.c_uint8 * max(size, 1)).from_address(address), np.uint8)[:size]

    def free(self, address: int) -> None:
        self.wait()
        del self.alive[address]

    def wait(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class HostArray:
    """Stand-in for `runtime.models.memory.Placed`."""

    def __init__(self, memory: HostMemory, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._memory, self._shape, self._dtype = memory, shape, dtype
        size = int(np.prod(shape)) * dtype.itemsize
        self._room = np.full(size + 2 * ALIGNMENT, 0, np.uint8)
        self._address = -(-self._room.ctypes.data // ALIGNMENT) * ALIGNMENT
        memory.alive[self._address] = max(size, 1)
        weakref.finalize(self, memory.free, self._address)

    def data_ptr(self) -> int:
        return self._address

    def update_inplace(self, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        assert len(content) <= self._memory.alive[self._address]
        self._memory.queue.append(
            lambda: self._memory.view(self._address, len(content)).__setitem__(slice(None), content)
        )

    def numpy(self) -> np.ndarray:
        self._memory.wait()
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        return self._memory.view(self._address, size).view(self._dtype).reshape(self._shape)


class HostEngine:
    """Stand-in for TensorRT's ICudaEngine, of an ONNX graph."""

    def __init__(self, session: Any, profiles: list[Profile], memory: HostMemory) -> None:
        self.session, self.profiles, self.memory = session, profiles, memory
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.outputs = {value.name: value for value in session.get_outputs()}
        self.tensors = self.inputs | self.outputs

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_TYPES[NUMPY_TYPES[self.tensors[name].type]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name].shape)

    def create_execution_context(self) -> "HostContext":
        return HostContext(self)


class HostContext:
    """Stand-in for TensorRT's IExecutionContext."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine, self.profile = engine, None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.shapes.clear()
        self.profile = self.engine.profiles[index] if index < len(self.engine.profiles) else None
        return self.profile is not None and stream == STREAM

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.profile.shapes.get(name, ((), (), ()))
        fits = len(shape) == len(smallest) == len(largest)
        if not fits or not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.tensors or address == 0 or address % ALIGNMENT:
            return False
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output: from the names of its sizes, as the inputs' shapes give them."""
        sizes: dict[str, int] = {}
        for given, shape in self.shapes.items():
            for axis, size in zip(self.engine.inputs[given].shape, shape, strict=True):
                if sizes.setdefault(str(axis), size) != size:
                    return (-1,) * len(self.engine.tensors[name].shape)
        return tuple(sizes.get(str(axis), axis) for axis in self.engine.tensors[name].shape)

    def is_stream_capturable(self, stream: int) -> bool:
        return stream == STREAM and self.runs > 4

    def execute_async_v3(self, stream: int) -> bool:
        if set(self.shapes) != set(self.engine.inputs) or set(self.addresses) != set(self.engine.tensors):
            return False
        places = {}
        for name, value in self.engine.tensors.items():
            shape = self.shapes.get(name) or self.get_tensor_shape(name)
            if min(shape, default=0) < 0 or not all(isinstance(size, int) for size in shape):
                return False
            places[name] = self.addresses[name], shape, np.dtype(NUMPY_TYPES[value.type])
        self.engine.memory.queue.append(lambda: self._compute(places))
        self.runs += 1
        return True

    def _compute(self, places: dict[str, tuple[int, tuple[int, ...], np.dtype]]) -> None:
        arrays = {}
        for name, (address, shape, dtype) in places.items():
            size = int(np.prod(shape)) * dtype.itemsize
            arrays[name] = self.engine.memory.view(address, size).view(dtype).reshape(shape)
        outputs = list(self.engine.outputs)
        for output in outputs:
            others = (array for name, array in arrays.items() if name != output and array.size)
            assert not any(np.may_share_memory(arrays[output], other) for other in others), output
        feeds = {name: arrays[name].copy() for name in self.engine.inputs}
        for name, value in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
            assert value.shape == arrays[name].shape, name
            arrays[name][...] = value


def host_session(session: Any, profiles: list[Profile], memory: HostMemory) -> EngineSession:
    """Create a session of an engine, as `runtime.trt.load` does."""
    engine = HostEngine(session, profiles, memory)
    contexts = [engine.create_execution_context() for _ in profiles]
    return EngineSession(
        engine, contexts, STREAM, [profile.name for profile in profiles], lambda: "it says why", memory.capture
    )


def host_model(model: Path, record: EngineRecord, memory: HostMemory | None = None) -> EngineModel:
    """Load an engine, as `runtime.trt.load.load_engine` does, from the ONNX file that it stands for."""
    memory = memory or HostMemory()
    session, kernels = create_session(model, Execution(threads=1))

    def score(smallest: int, largest: int) -> EngineSession:
        graph = onnxruntime.InferenceSession(accumulation(), providers=["CPUExecutionProvider"])
        shapes = {}
        for value in graph.get_inputs():
            low, high = (1, record.max_batch) if value.name in FACTORS else (smallest, largest)
            shapes[value.name] = ((low,), (low,), (high,))
        return host_session(graph, [Profile("score", shapes)], memory)

    kind = EngineInPlaceModel if record.kv_cache == IN_PLACE else EngineModel
    return kind(host_session(session, record.profiles, memory), record, memory, kernels, score)
