"""Ops as TensorRT plugins: every call goes through a plugin's own methods, as an engine's would."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clada.errors import CladaError
from clada.ops.record import Op
from clada.plugins.tensorrt.library import library_version
from gpu_suite.build import PLUGINS, PROBE, Libraries, tensorrt_headers
from gpu_suite.calls import axis_sizes
from gpu_suite.checks import Check, sample_checks
from gpu_suite.device import Device, GuardedMemory
from gpu_suite.plugin_probe import PluginLibrary, tensors_of
from gpu_suite.timing import LeftOut


@dataclass(frozen=True)
class Plugins:
    """A library of plugins.

    Args:
        library: Loaded.
        device: Device of its pointers.
        release: The release of clada that it is of.
    """

    library: PluginLibrary
    device: Device
    release: str

    def call(self, op: Op, inputs: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float]) -> "PluginCall":
        """Prepare a call of an op."""
        return PluginCall(self, op, inputs, attributes)


class PluginCall:
    """Prepared call of an op by a plugin that was created, configured and attached to a context for it.

    Args:
        plugins: The library.
        op: The op.
        inputs: Contiguous tensors of the library's device, by the record's names.
        attributes: By name.

    Raises:
        CladaError: The plugin refuses any of it: what it logged.
    """

    def __init__(
        self, plugins: Plugins, op: Op, inputs: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float]
    ) -> None:
        self._library, self._device = plugins.library, plugins.device
        self._inputs = [inputs[spec.name] for spec in op.inputs]
        sizes = axis_sizes(op, {name: tensor.shape for name, tensor in inputs.items()}, attributes)
        dtype = self._inputs[0].dtype
        self._memory = GuardedMemory(plugins.device.name)
        self.outputs = {
            spec.name: self._memory.tensor(
                [sizes[axis] for axis in spec.axes], dtype if spec.dtype == "T" else getattr(torch, spec.dtype)
            )
            for spec in op.outputs
        }
        self._tensors = tensors_of(op, sizes, str(dtype).removeprefix("torch."))
        # Some cases have a whole number for a real one.
        fields = {attribute.name: type(attribute.default)(attributes[attribute.name]) for attribute in op.attributes}
        made = self._library.create(op, fields)
        if made is None:
            raise self._refusal()
        self._check(made.configure(self._tensors))
        self._workspace = self._memory.tensor([made.workspace(self._tensors)], torch.uint8)
        self._plugin = made.clone().attach()
        self._check(self._plugin.shape_change(self._tensors))

    def _refusal(self) -> CladaError:
        return CladaError(f"a plugin of TensorRT's failed: {'; '.join(self._library.log())}")

    def _check(self, status: int) -> None:
        if status:
            raise self._refusal()

    def launch(self) -> None:
        """Launch it on torch's current stream.

        Raises:
            CladaError: The launch failed.
        """
        inputs, outputs = ([tensor.data_ptr() for tensor in some] for some in (self._inputs, self.outputs.values()))
        workspace, stream = self._workspace.data_ptr(), self._device.stream()
        self._check(self._plugin.enqueue(self._tensors, inputs, outputs, workspace, stream))

    def poison(self) -> None:
        """Fill outputs and workspace with NaN, so that elements that are not written are detected."""
        self._memory.poison()

    def written_outside(self) -> bool:
        """Whether memory around outputs and workspace was changed."""
        return bool(self._memory.damage())


def load_plugins(libraries: Libraries, given: Path | None, device: Device) -> Plugins | LeftOut:
    """Load the plugins over the kernels of a checkout, or a given library of them; or return why they cannot be called.

    Args:
        libraries: Of the plugins, and of what calls them.
        given: A library of plugins, to be loaded instead.
        device: Device of the kernels' pointers.

    Raises:
        CladaError: The headers or the library are not what they are said to be, or CMake fails.
    """
    if tensorrt_headers() is None:
        why = "TENSORRT_INCLUDE_DIR is not set; set it to the folder of TensorRT's NvInferRuntime.h"
        if given:
            raise CladaError(f"{given} cannot be called: {why}")
        return LeftOut("TensorRT's plugins", why)
    path = given.resolve() if given else libraries(PLUGINS)
    release = library_version(path)
    return Plugins(PluginLibrary(libraries(PROBE), path), device, release)


def plugin_checks(plugins: Plugins) -> Iterator[Check]:
    """Check every sample case of the records, in every element type, through enqueue."""
    for check in sample_checks(plugins):
        yield replace(check, subject=f"TensorRT:{check.subject}")
