"""Loading of an engine by TensorRT or TensorRT for RTX on this machine's GPU, after checks of all that can be wrong."""

import importlib
import mmap
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clada.contract.engine_choices import TENSORRT_RTX
from clada.contract.engine_record import DECODE, IN_PLACE, EngineRecord
from clada.errors import CladaError
from clada.plugins.tensorrt.library import register
from clada.runtime.models.cuda_driver import Gpu, in_bytes, why_no_gpu
from clada.runtime.models.score import FACTORS, accumulation
from clada.runtime.out_of_memory import says_memory_is_full
from clada.runtime.trt.contexts import EngineSession
from clada.runtime.trt.engine_model import EngineModel
from clada.runtime.trt.engine_model_in_place import EngineInPlaceModel
from clada.runtime.trt.package import MODULES, log_of


def load_engine(path: Path, record: EngineRecord) -> EngineModel:
    """Load an engine.

    Args:
        path: The engine, whose hash has been checked.
        record: Record of the engine.

    Raises:
        CladaError: TensorRT is missing or of another release; the plugins are; there is no GPU, or another than the
            engine was built for, or its memory is full; or TensorRT does not take the engine.
    """
    trt = _module(path, record)
    if record.plugins:
        _register_plugins(trt, path, record)
    # Some releases abort the process where there is no driver: nothing of the runtime is made before this.
    reason = why_no_gpu()
    if reason:
        raise CladaError(f"{path} needs an NVIDIA GPU: {reason}")
    gpu = Gpu()
    if gpu.compute_capability not in record.compute_capability:
        wanted, target = ", ".join(record.compute_capability), gpu.compute_capability.replace(".", "")
        how = f"with --target sm_{target}" if record.runtime == TENSORRT_RTX else "on this machine"
        raise CladaError(
            f"{path} was built for GPUs of compute capability {wanted}, and this one ({gpu.name}) has "
            f"{gpu.compute_capability}: build it {how}"
        )
    log = log_of(trt)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        fixed = [DECODE] if record.kv_cache == IN_PLACE else []
        session = _session(trt, log, gpu, content, [profile.name for profile in record.profiles], str(path), fixed)
    ops = f"TensorRT plugins, {gpu.name}" if record.plugins else f"function bodies, {gpu.name}"
    model = EngineInPlaceModel if record.kv_cache == IN_PLACE else EngineModel
    return model(session, record, gpu, ops, partial(_accumulation, trt, log, gpu, record.max_batch))


def _module(path: Path, record: EngineRecord) -> Any:
    name = MODULES[record.runtime]
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CladaError(
            f"{path} needs {name} {record.runtime_version}, which does not load here ({first}): pip install "
            f"'clada[{record.runtime}]' '{name}=={record.runtime_version}'"
        ) from error
    if trt.__version__ != record.runtime_version:
        raise CladaError(
            f"{path} was built by {name} {record.runtime_version}, and this is {name} {trt.__version__}, which reads "
            "engines of its own alone: build it again with this one, or install the other"
        )
    return trt


def _register_plugins(trt: Any, path: Path, record: EngineRecord) -> None:
    ours = version("clada")
    if record.plugin_release != ours:
        raise CladaError(
            f"{path} holds plugins of clada {record.plugin_release}, and this is clada {ours}: build it again with this"
        )
    register(trt)


def said(log: Any) -> str:
    """Last error of TensorRT."""
    return str(log.errors[-1]) if log.errors else "it gives no reason"


def _session(
    trt: Any, log: Any, gpu: Gpu, content: Any, profiles: Sequence[str], name: str, fixed: Sequence[str]
) -> EngineSession:
    """Load an engine, with a context for each profile; runs of those in `fixed` have few different shapes."""
    log.errors.clear()
    engine = trt.Runtime(log).deserialize_cuda_engine(content)
    if engine is None:
        if says_memory_is_full(said(log)):
            size, free = (in_bytes(count) for count in (memoryview(content).nbytes, gpu.free_memory()))
            raise CladaError(
                f"the GPU's memory is too small for {name}: it is of {size} and {free} are free: export a smaller "
                f"model, or in float16 ({said(log)})"
            )
        raise CladaError(f"{trt.__name__} {trt.__version__} cannot read {name}: {said(log)}")
    contexts = []
    for index, profile in enumerate(profiles):
        context = engine.create_execution_context(_way_to_run(trt, engine, profile in fixed))
        if context is None:
            needed = in_bytes(engine.get_device_memory_size_for_profile_v2(index))
            raise CladaError(
                f"{trt.__name__} {trt.__version__} cannot run the {profile} profile of {name}, which needs {needed} "
                f"beside the weights, of {in_bytes(gpu.free_memory())} free: {said(log)}"
            )
        contexts.append(context)
    return EngineSession(engine, contexts, gpu.stream, profiles, partial(said, log), gpu.capture)


def _way_to_run(trt: Any, engine: Any, fixed: bool) -> Any:
    """Configuration of a context: memory of its own profile alone, and when TensorRT for RTX compiles while it runs."""
    allocation = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return allocation
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(allocation)
    if not fixed:
        # Each token makes a text longer: kernels for one length would be of no use to the next.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.NONE
    return config


def _accumulation(trt: Any, log: Any, gpu: Gpu, max_batch: int, smallest: int, largest: int) -> EngineSession:
    """Build the running score's graph for the GPU of this machine: a few elementwise operations."""
    content = build_accumulation(trt, log, max_batch, smallest, largest)
    return _session(trt, log, gpu, content, ["score"], "the graph of the running score", ["score"])


def build_accumulation(trt: Any, log: Any, max_batch: int, smallest: int, largest: int, capability: Any = None) -> Any:
    """Build an engine of the graph `accumulation`.

    Args:
        trt: The module.
        log: Its logger.
        max_batch: The most texts.
        smallest: Elements of the scores of one text.
        largest: Of those of `max_batch` texts.
        capability: The `ComputeCapability` to build for; that of the GPU of this machine where None.

    Raises:
        CladaError: TensorRT cannot.
    """
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    parsed = parser.parse(accumulation())
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        low, high = (1, max_batch) if name in FACTORS else (smallest, largest)
        profile.set_shape(name, (low,), (low,), (high,))
    config.add_optimization_profile(profile)
    content = builder.build_serialized_network(network, config) if parsed else None
    if content is None:
        raise CladaError(f"TensorRT {trt.__version__} cannot build the graph of the running score: {said(log)}")
    return content
