"""What a TensorRT does with the plugins: a program of its own, as a process holds one TensorRT and one logger.

Takes the name of TensorRT's module and the library, on stdin a list of [op, fields], and writes what came of each.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from clada.plugins.ops import DOMAIN, VERSION
from clada.plugins.tensorrt import register


def _field(trt: Any, name: str, value: str | float) -> Any:
    if isinstance(value, str):
        return trt.PluginField(name, np.frombuffer(value.encode(), np.int8).copy(), trt.PluginFieldType.CHAR)
    return trt.PluginField(name, np.array([value], np.float32), trt.PluginFieldType.FLOAT32)


def main() -> None:
    module, library = sys.argv[1:]
    trt = importlib.import_module(module)
    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.ERROR:
                messages.append(message)

    runtime = trt.Runtime(Logger())  # without a driver it cannot run, but its logger is known from here on
    for _ in range(2):
        register(trt, Path(library))
    registry = trt.get_plugin_registry()
    results = []
    for op, fields in json.load(sys.stdin):
        creator = registry.get_creator(op, str(VERSION), DOMAIN)
        collection = trt.PluginFieldCollection([_field(trt, name, value) for name, value in fields.items()])
        messages.clear()
        plugin = creator.create_plugin("node", collection, trt.TensorRTPhase.BUILD)
        result = {"announced": [field.name for field in creator.field_names], "messages": list(messages)}
        if plugin is not None:
            clone = plugin.clone()
            core = clone.get_capability_interface(trt.PluginCapabilityType.CORE)
            build = clone.get_capability_interface(trt.PluginCapabilityType.BUILD)
            result["plugin"] = [core.plugin_name, core.plugin_version, core.plugin_namespace, build.num_outputs]
        results.append(result)
    print(json.dumps({"version": trt.__version__, "results": results}))
    del runtime


if __name__ == "__main__":
    main()
