"""A library of TensorRT plugins, called as TensorRT calls it, through gpu_suite/plugin_probe.cpp."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clada.errors import CladaError
from clada.ops import DOMAIN, VERSION
from clada.ops.record import Op

Shape = Sequence[int]
Fields = Mapping[str, str | float]


class _Dims(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


class _Tensor(ctypes.Structure):
    _fields_ = (("shape", _Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float))


class _DynamicTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("min", _Dims), ("max", _Dims), ("opt", _Dims))


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class _Collection(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(_Field)))


_FLOAT32, _INT32, _CHAR = 1, 5, 6  # PluginFieldType
_POINTER, _TEXT, _FIELDS, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(_Collection), ctypes.c_size_t
# What the probe's functions return; an int where they are not named here.
_RESULTS = {
    **dict.fromkeys(("open", "creator", "registered", "create", "clone", "attach"), _POINTER),
    **dict.fromkeys(("log", "creator_name", "creator_version", "creator_namespace", "plugin_name"), _TEXT),
    **dict.fromkeys(("creator_fields", "serialized"), _FIELDS),
    **dict.fromkeys(("tensor_size", "workspace"), _SIZE),
    "supports": ctypes.c_bool,
}


@dataclass(frozen=True)
class TensorSpec:
    """Description of a tensor, as TensorRT gives it to a plugin.

    Args:
        shape: -1 for a size that is not known.
        dtype: As the op records call it.
        most: The largest shape that it may have; `shape` where None.
        linear: Whether its elements lie in order.
    """

    shape: Shape
    dtype: str
    most: Shape | None = None
    linear: bool = True


def tensors_of(
    op: Op, sizes: Mapping[str, int], float_type: str, most: Mapping[str, int] | None = None
) -> list[TensorSpec]:
    """The inputs and outputs of an op at the sizes of its axes."""
    return [
        TensorSpec(
            [sizes[axis] for axis in spec.axes],
            float_type if spec.dtype == "T" else spec.dtype,
            [most[axis] for axis in spec.axes] if most else None,
        )
        for spec in (*op.inputs, *op.outputs)
    ]


def _dims(shape: Shape) -> _Dims:
    return _Dims(len(shape), (ctypes.c_int64 * 8)(*shape))


def _field(name: str, value: str | float) -> tuple[_Field, object]:
    """Field, and the buffer that must outlive it. Text has no end but its length, as from TensorRT's parser."""
    if isinstance(value, str):
        # What follows the text would show where it is read too far.
        text = ctypes.create_string_buffer(value.encode() + b"#", len(value) + 1)
        return _Field(name.encode(), ctypes.addressof(text), _CHAR, len(value)), text
    if isinstance(value, int):
        integer = ctypes.c_int32(value)
        return _Field(name.encode(), ctypes.addressof(integer), _INT32, 1), integer
    number = ctypes.c_float(value)
    return _Field(name.encode(), ctypes.addressof(number), _FLOAT32, 1), number


def _read_fields(collection: _Collection) -> dict[str, str | float]:
    fields: dict[str, str | float] = {}
    for field in collection.fields[: collection.count]:
        if field.type == _CHAR:
            fields[field.name.decode()] = ctypes.string_at(field.data, field.length).decode()
        else:
            assert field.type in (_FLOAT32, _INT32) and field.length == 1
            number = ctypes.c_float if field.type == _FLOAT32 else ctypes.c_int32
            fields[field.name.decode()] = number.from_address(field.data).value
    return fields


class PluginLibrary:
    """Loaded library of plugins, with a logger.

    Args:
        probe: Compiled plugin_probe.cpp.
        library: The plugins.
        registry: The registry of a TensorRT that has them, to be asked for creators; the library where None.

    Raises:
        CladaError: One of them does not load, or the probe is of a TensorRT that describes tensors in another way.
    """

    def __init__(self, probe: Path, library: Path, registry: int | None = None) -> None:
        try:
            self._probe = ctypes.CDLL(str(probe))
        except OSError as error:
            raise CladaError(f"the probe of TensorRT's plugins cannot be used: {error}") from error
        for name, result in _RESULTS.items():
            getattr(self._probe, f"probe_{name}").restype = result
        if self.call("tensor_size") != ctypes.sizeof(_DynamicTensor):
            raise CladaError("TensorRT's headers describe tensors in another way than those of releases 10 and 11")
        self._library = _POINTER(self.call("open", str(library).encode()))
        if not self._library:
            raise CladaError(f"the TensorRT plugins cannot be used: {' '.join(self.log())}")
        self._registry = registry
        self.give_logger()

    def call(self, name: str, *args: object) -> Any:
        """Call a function of the probe."""
        return getattr(self._probe, f"probe_{name}")(*args)

    def give_logger(self, *, finder: bool = True, known: bool = False, later: int = 0) -> None:
        """Set the logger that receives the library's errors.

        Args:
            finder: Whether it gets a finder of a logger.
            known: Whether it could ask TensorRT for a logger.
            later: By how much TensorRT's major release differs from the headers'.
        """
        self.call("set_logger", self._library, ctypes.c_bool(finder), ctypes.c_bool(known), later)

    def log(self) -> list[str]:
        """The lines logged since the last call."""
        text: bytes = self.call("log")
        return text.decode().splitlines()

    def creators(self) -> Iterator["Creator"]:
        """Creators of all plugins."""
        index = 0
        while address := self.call("creator", self._library, index):
            yield Creator(self, _POINTER(address))
            index += 1

    def creator(self, op: Op) -> "Creator":
        """Creator of an op's plugins."""
        if self._registry is None:
            return next(creator for creator in self.creators() if creator.name == op.name)
        identity = (text.encode() for text in (op.name, str(VERSION), DOMAIN))
        return Creator(self, _POINTER(self.call("registered", _POINTER(self._registry), *identity)))

    def create(self, op: Op, fields: Fields, *, from_engine: bool = False) -> "Plugin | None":
        """Create a plugin of an op, or return None where it is refused."""
        made = [_field(name, value) for name, value in fields.items()]
        array = (_Field * len(made))(*(field for field, _ in made))
        address = self.call(
            "create", self.creator(op).address, b"/model/node", array, len(made), ctypes.c_bool(from_engine)
        )
        return Plugin(self, op, address) if address else None

    def tensors(self, specs: Sequence[TensorSpec]) -> "ctypes.Array[_Tensor]":
        """TensorRT's descriptions of tensors of known sizes."""
        return (_Tensor * len(specs))(*map(self._tensor, specs))

    def dynamic_tensors(self, specs: Sequence[TensorSpec]) -> "ctypes.Array[_DynamicTensor]":
        """TensorRT's descriptions of tensors whose sizes are bounded."""
        described = []
        for spec in specs:
            most = spec.most or spec.shape
            least = [1] * len(most)
            described.append(_DynamicTensor(self._tensor(spec), _dims(least), _dims(most), _dims(least)))
        return (_DynamicTensor * len(specs))(*described)

    def _tensor(self, spec: TensorSpec) -> _Tensor:
        form = self.call("format", ctypes.c_bool(spec.linear))
        return _Tensor(_dims(spec.shape), self.data_type(spec.dtype), form, -1.0)

    def data_type(self, name: str) -> int:
        """Number of a type in TensorRT."""
        number: int = self.call("data_type", name.encode())
        return number


@dataclass(frozen=True)
class Creator:
    """Creator of an op's plugins."""

    library: PluginLibrary
    address: ctypes.c_void_p

    def _text(self, what: str) -> str:
        text: bytes = self.library.call(f"creator_{what}", self.address)
        return text.decode()

    @property
    def name(self) -> str:
        """Name of the op."""
        return self._text("name")

    @property
    def identity(self) -> tuple[str, str, str]:
        """Key by which TensorRT finds it: name, version, namespace."""
        return self.name, self._text("version"), self._text("namespace")

    def field_names(self) -> list[str]:
        """Names of the fields that the parser passes for a node."""
        collection = self.library.call("creator_fields", self.address).contents
        return [field.name.decode() for field in collection.fields[: collection.count]]


class Plugin:
    """Plugin of one node."""

    def __init__(self, library: PluginLibrary, op: Op, address: int) -> None:
        self._library, self._op = library, op
        self._address = _POINTER(address)

    def __del__(self) -> None:
        self._library.call("destroy", self._address)

    def clone(self) -> "Plugin":
        """Clone the plugin, as TensorRT does for its network."""
        return Plugin(self._library, self._op, self._library.call("clone", self._address))

    def attach(self, context: int = 0) -> "Plugin":
        """Attach the plugin to a context, which is no more than a number here, as TensorRT does."""
        return Plugin(self._library, self._op, self._library.call("attach", self._address, _POINTER(context)))

    @property
    def name(self) -> str:
        """Name of the op, according to the plugin."""
        text: bytes = self._library.call("plugin_name", self._address)
        return text.decode()

    def serialized(self) -> dict[str, str | float]:
        """Fields that are serialized into an engine."""
        return _read_fields(self._library.call("serialized", self._address).contents)

    def output_types(self, inputs: Sequence[str]) -> list[int] | None:
        """Types of the outputs in TensorRT, None where the inputs' are refused."""
        outputs = (ctypes.c_int32 * 8)()
        types = (ctypes.c_int32 * len(inputs))(*map(self._library.data_type, inputs))
        failed = self._library.call("output_types", self._address, types, len(inputs), outputs)
        return None if failed else outputs[: len(self._op.outputs)]

    def output_shapes(self, inputs: Sequence[Shape]) -> list[list[int]] | None:
        """Shapes of the outputs, None where the inputs' are refused; a size below 0 stands for one not known."""
        outputs = (_Dims * 8)()
        shapes = (_Dims * len(inputs))(*map(_dims, inputs))
        failed = self._library.call("output_shapes", self._address, shapes, len(inputs), outputs)
        return None if failed else [dims.sizes[: dims.count] for dims in outputs[: len(self._op.outputs)]]

    def supports(self, position: int, tensors: Sequence[TensorSpec]) -> bool:
        """Whether a tensor may have its type and format, given those before it."""
        described = self._library.dynamic_tensors(tensors)
        return bool(self._library.call("supports", self._address, position, described, len(self._op.inputs)))

    def configure(self, tensors: Sequence[TensorSpec]) -> int:
        """Configure the plugin for building; 0 where that is possible."""
        described = self._library.dynamic_tensors(tensors)
        status: int = self._library.call("configure", self._address, described, len(self._op.inputs))
        return status

    def workspace(self, tensors: Sequence[TensorSpec]) -> int:
        """Workspace for the largest sizes, in bytes."""
        described = self._library.dynamic_tensors(tensors)
        size: int = self._library.call("workspace", self._address, described, len(self._op.inputs))
        return size

    def shape_change(self, tensors: Sequence[TensorSpec]) -> int:
        """Announce the sizes of a run; 0 where the plugin supports them."""
        described = self._library.tensors(tensors)
        status: int = self._library.call("shape_change", self._address, described, len(self._op.inputs))
        return status

    def enqueue(
        self, tensors: Sequence[TensorSpec], inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> int:
        """Launch the computation, with pointers of the kernels' device; 0 on success."""
        described = self._library.tensors(tensors)
        pointers = (_POINTER * len(inputs))(*inputs), (_POINTER * len(outputs))(*outputs)
        rest = _POINTER(workspace), _POINTER(stream)
        status: int = self._library.call("enqueue", self._address, described, len(self._op.inputs), *pointers, *rest)
        return status
