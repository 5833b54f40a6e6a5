"""Program that runs a TensorRT with the plugins, on its own, as a process holds one TensorRT and one logger.

Takes the name of TensorRT's module, the library, and the probe where there is one; on stdin a list of [op, fields].
Writes what came of each, and of what only the probe can ask for.
"""

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clada.ops import DOMAIN, OPS, VERSION
from clada.ops.record import FLOAT_TYPES
from clada.plugins.tensorrt import register
from gpu_suite.plugin_probe import PluginLibrary
from tests.tensorrt.checks import all_fields, check_fields, check_formats, check_output_shapes, check_output_types


def _field(trt: Any, name: str, value: str | float) -> Any:
    if isinstance(value, str):
        return trt.PluginField(name, np.frombuffer(value.encode(), np.int8).copy(), trt.PluginFieldType.CHAR)
    if isinstance(value, int):
        return trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)
    return trt.PluginField(name, np.array([value], np.float32), trt.PluginFieldType.FLOAT32)


def _registry() -> int:
    """Address of the loaded TensorRT's registry: Python clones and serializes only plugins written in Python."""
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    for path in sorted(paths):
        if "nvinfer" in path or "tensorrt" in path:
            library = ctypes.CDLL(path)
            if hasattr(library, "getPluginRegistry"):
                library.getPluginRegistry.restype = ctypes.c_void_p
                return library.getPluginRegistry()
    raise AssertionError(paths)


def _checks(library: PluginLibrary) -> Iterator[str]:
    for op in OPS.values():
        assert library.creator(op).identity == (op.name, str(VERSION), DOMAIN)
        for fields in all_fields(op):
            check_fields(library, op, fields)
        check_output_shapes(library, op)
        for name in FLOAT_TYPES:
            check_output_types(library, op, name)
            check_formats(library, op, name)
        yield op.name


def _created(trt: Any, op: str, fields: dict[str, str | float], messages: list[str]) -> dict[str, Any]:
    creator = trt.get_plugin_registry().get_creator(op, str(VERSION), DOMAIN)
    collection = trt.PluginFieldCollection([_field(trt, name, value) for name, value in fields.items()])
    messages.clear()
    plugin = creator.create_plugin("node", collection, trt.TensorRTPhase.BUILD)
    result = {"announced": [field.name for field in creator.field_names], "messages": list(messages)}
    if plugin is not None:
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
        result["plugin"] = [core.plugin_name, core.plugin_version, core.plugin_namespace, build.num_outputs]
    return result


def main() -> None:
    module, library, *probe = sys.argv[1:]
    trt = importlib.import_module(module)
    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.ERROR:
                messages.append(message)

    logger = Logger()
    # TensorRT knows the logger from then on; but for a runtime there has to be a driver.
    owner = trt.Builder(logger) if hasattr(trt, "Builder") else trt.Runtime(logger)
    for _ in range(2):
        register(trt, Path(library))
    results = [_created(trt, op, fields, messages) for op, fields in json.load(sys.stdin)]
    checked = list(_checks(PluginLibrary(Path(probe[0]), Path(library), _registry()))) if probe else []
    print(json.dumps({"version": trt.__version__, "results": results, "checked": checked}), flush=True)
    # What a TensorRT without a driver made cannot be destroyed.
    assert owner is not None
    os._exit(0)


if __name__ == "__main__":
    main()
