"""Build of an artifact's engine and the engine's record."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from clada.contract.artifact import CONFIG_NAME, Artifact, open_artifact
from clada.contract.engine_choices import TrtKernels
from clada.contract.engine_record import ENGINE_SUFFIX, EngineRecord, Profile, record_path, write_record
from clada.contract.files import file_hash, unfinished, written
from clada.contract.manifest import MANIFEST_NAME
from clada.contract.onnx_wire import nodes_of, opset_of, without_functions
from clada.errors import CladaError
from clada.ops import DOMAIN
from clada.runtime.models.cuda_driver import compute_capability
from clada.runtime.out_of_memory import says_memory_is_full
from clada.runtime.trt.building.imported_ops import check_imported
from clada.runtime.trt.building.kv_cache import cut_cache, window_of
from clada.runtime.trt.building.packed_constants import keep_packed
from clada.runtime.trt.building.profiles import add_profiles, limits_for, profiles_for
from clada.runtime.trt.building.progress import progress_monitor, stopped_by_interrupt
from clada.runtime.trt.building.quantization_scales import check_scales_of
from clada.runtime.trt.package import (
    choose_plugins,
    load_package,
    log_of,
    set_targets,
    target_names,
    targets_for,
    timing_cache_for,
)
from clada.runtime.trt.timing_cache import keep_cache, use_cache


@dataclass(frozen=True)
class BuildConfig:
    """Options of a build.

    Args:
        runtime: "tensorrt" or "tensorrt-rtx"; that which is installed where None.
        targets: GPUs to build for, as "sm_89", for TensorRT for RTX; all it knows but Turing where empty.
        kernels: "plugins", "bodies", or "auto": plugins with TensorRT where the library is there, else bodies.
        max_batch: The most texts at once.
        max_prompt: The most tokens of a prompt; 1,024 or the capacity where None.
        capacity: The most tokens of a text; 4,096 or the model's context where None.
    """

    runtime: str | None = None
    targets: tuple[str, ...] = ()
    kernels: TrtKernels = "auto"
    max_batch: int = 1
    max_prompt: int | None = None
    capacity: int | None = None


def build_engine(
    model: Path, output: Path | None, config: BuildConfig, report: Callable[[str], None] = print
) -> EngineRecord:
    """Build the engine of an artifact; engine and record are written atomically.

    Args:
        model: The artifact's ONNX file.
        output: The engine; the model's name with the suffix .engine where None.
        config: Options of the build.
        report: Called with each line of progress.

    Raises:
        CladaError: What was given or asked for cannot be built, or nothing can be written there.
    """
    artifact = open_artifact(model)
    artifact.check_for_gpu()
    limits = limits_for(artifact.manifest.model.context_length, config.max_batch, config.max_prompt, config.capacity)
    output = output or artifact.model.with_suffix(ENGINE_SUFFIX)
    _check_output(output, artifact)
    runtime, trt = load_package(config.runtime)
    targets = targets_for(runtime, trt, config.targets)
    plugins = choose_plugins(runtime, trt, config.kernels)
    log = log_of(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network, line = _parse(trt, builder, artifact.path(artifact.model.name), plugins)
    report(line)
    report(
        f"{trt.__name__} {trt.__version__} builds for {target_names(targets)}: batch {limits.max_batch}, prompt "
        f"{limits.max_prompt}, text {limits.capacity} tokens"
    )
    kv_cache, line = cut_cache(trt, network, window_of(_config(artifact)), limits.capacity)
    report(line)
    builder_config = builder.create_builder_config()
    # Float32 is what the model was verified in; thresholds decide otherwise on ten bits of mantissa.
    builder_config.clear_flag(trt.BuilderFlag.TF32)
    set_targets(runtime, trt, builder_config, targets)
    profiles = profiles_for(network, limits, kv_cache)
    add_profiles(builder, builder_config, profiles)
    timings = timing_cache_for(runtime, trt, targets)
    if timings is not None:
        use_cache(builder_config, timings)
    with written(output), unfinished(output) as path:
        with path.open("wb") as file:
            _serialize(trt, builder, network, builder_config, file)
        if timings is not None:
            keep_cache(builder_config, timings)
        report(_read_back(trt, path, profiles, targets))
        record = EngineRecord(
            runtime=runtime,
            runtime_version=trt.__version__,
            compute_capability=targets,
            plugins=plugins,
            plugin_release=version("clada"),
            sha256=file_hash(path),
            manifest=MANIFEST_NAME,
            manifest_sha256=file_hash(artifact.path(MANIFEST_NAME)),
            dtype=artifact.manifest.model.dtype,
            max_batch=limits.max_batch,
            max_prompt=limits.max_prompt,
            capacity=limits.capacity,
            kv_cache=kv_cache,
            profiles=profiles,
        )
        size = path.stat().st_size
        path.replace(output)
    # Until it is written the record of an engine that was there before refuses the new one by its hash.
    write_record(record, record_path(output))
    report(f"wrote {output}, {size:,} bytes, and {record_path(output).name}")
    return record


def _check_output(output: Path, artifact: Artifact) -> None:
    if output.suffix != ENGINE_SUFFIX:
        raise CladaError(f"the output is {output}; an engine's name ends in {ENGINE_SUFFIX}")
    if output.is_dir():
        raise CladaError(f"cannot write {output}: it is a folder")
    if not output.parent.is_dir():
        raise CladaError(f"there is no folder {output.parent}: make it, or write beside {artifact.model}")
    ours, theirs = artifact.path(MANIFEST_NAME), output.parent / MANIFEST_NAME
    if not theirs.is_file() or file_hash(ours) != file_hash(theirs):
        raise CladaError(
            f"{output} would not have {MANIFEST_NAME} of {artifact.model} beside it, without which it does not run: "
            "write it beside the model, or copy the model's files there first"
        )


def _config(artifact: Artifact) -> dict[str, Any]:
    return artifact.settings(CONFIG_NAME)


def _parse(trt: Any, builder: Any, model: Path, plugins: bool) -> tuple[Any, str]:
    """Parse an ONNX file; returns the network, and a line on how its ops were imported."""
    content = model.read_bytes()
    nodes = nodes_of(content, DOMAIN)
    check_scales_of(model, content, nodes)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log_of(trt))
    # Parsers before 10.7 take a function's body even where there is a plugin.
    graph = without_functions(content) if plugins else content
    if not parser.parse(graph, str(model)):
        opset, reason = opset_of(content), _parser_error(parser)
        raise CladaError(f"{trt.__name__} {trt.__version__} cannot read {model}, of opset {opset}: {reason}")
    _let_attention_be_taken_apart(trt, network)
    imported = check_imported(trt, network, nodes, plugins)
    packed = keep_packed(trt, network)
    return network, f"{imported}; {packed} quantized matrices stay packed" if packed else imported


def _let_attention_be_taken_apart(trt: Any, network: Any) -> None:
    """Mark every Attention as decomposable: TensorRT otherwise refuses sizes of opset 23 without a fused kernel."""
    kind = trt.LayerType.__members__.get("ATTENTION_INPUT")
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if kind is not None and layer.type == kind:
            # The binding's way to a layer's own interface.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _parser_error(parser: Any) -> str:
    if not parser.num_errors:
        return "it gives no reason"
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())
    if not error.node_name():
        return reason
    return f"node {error.node_name()} ({error.node_operator()}): {reason}; export it again with another --opset"


def _serialize(trt: Any, builder: Any, network: Any, config: Any, file: BinaryIO) -> None:
    """Serialize the engine into a file, in pieces where TensorRT can, so that it is not in memory twice."""
    log, progress = log_of(trt), progress_monitor(trt)
    config.progress_monitor = progress
    failure: list[OSError] = []

    def write(content: Any) -> int:
        try:
            return file.write(content)
        except OSError as error:
            failure.append(error)
            return 0

    try:
        with stopped_by_interrupt(progress):
            if hasattr(builder, "build_serialized_network_to_stream"):
                built = builder.build_serialized_network_to_stream(network, config, _writer(trt, write))
            else:
                content = builder.build_serialized_network(network, config)
                built = content is not None and write(memoryview(content)) > 0
    except MemoryError:
        built = False
        log.errors.append("out of memory")
    if failure:
        raise failure[0]
    if progress.interrupted:
        raise KeyboardInterrupt
    if not built:
        raise CladaError(_build_error(trt, log.errors))


def _build_error(trt: Any, errors: list[str]) -> str:
    reason = errors[0] if errors else "it gives no reason"
    start = f"{trt.__name__} {trt.__version__} cannot build the engine"
    if any(map(says_memory_is_full, errors)):
        return f"{start}, memory is too small: lower --max-prompt, --capacity or --max-batch ({reason})"
    return f"{start}: {reason}"


def _writer(trt: Any, write: Callable[[Any], int]) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # known only once it is loaded
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, content: Any) -> int:
            return write(content)

    return Writer()


def _read_back(trt: Any, path: Path, profiles: list[Profile], targets: list[str]) -> str:
    """Read an engine back and check it against the request; only a GPU that it is for can read it."""
    here = compute_capability()
    if here not in targets:
        return "not read back: that needs a GPU that it is for"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        log = log_of(trt)
        engine = trt.Runtime(log).deserialize_cuda_engine(content)
        if engine is None:
            raise CladaError(f"{trt.__name__} {trt.__version__} cannot read the engine it built: {log.errors[-1:]}")
        check_engine(trt, engine, profiles)
    return "read back: its inputs and profiles are those asked for"


def check_engine(trt: Any, engine: Any, profiles: list[Profile]) -> None:
    """Check that an engine has these inputs, and takes these shapes.

    Raises:
        CladaError: It has others.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
    for index, profile in enumerate(profiles):
        if inputs != set(profile.shapes):
            odd = sorted(inputs ^ set(profile.shapes))
            raise CladaError(f"the engine that was built has other inputs than were asked for: {', '.join(odd)}")
        for name, shapes in profile.shapes.items():
            found = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, index))
            if found != shapes:
                raise CladaError(f"the engine that was built takes {name} as {found}, and {shapes} was asked for")
