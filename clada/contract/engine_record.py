"""Record beside an engine: its source artifact, its machine and its shapes."""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clada.contract.engine_choices import RUNTIMES
from clada.contract.files import file_hash, write
from clada.contract.manifest import MANIFEST_NAME
from clada.contract.sealed_json import sealed_text, unsealed
from clada.contract.typed_json import read_bytes, shown
from clada.errors import CladaError

FORMAT_VERSION = 2
ENGINE_SUFFIX = ".engine"

PREFILL = "prefill"
DECODE = "decode"
PROFILES = (PREFILL, DECODE)

# How the cache that goes in relates to the one that comes out.
COPIED = "copied"
IN_PLACE = "in_place"
KV_CACHES = (COPIED, IN_PLACE)
DTYPES = ("float32", "float16")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes together; the profile's index in the engine is its place in the record.

    Args:
        name: "prefill" or "decode".
        shapes: Of every input of the engine by name, those of fixed shape included: the smallest, the one the engine
            was tuned for, and the largest.
    """

    name: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class EngineRecord:
    """Description of an engine.

    Args:
        runtime: "tensorrt" or "tensorrt-rtx": which of the two packages reads it.
        runtime_version: The release of that package that built it.
        compute_capability: Those of the GPUs it runs on, as "8.9".
        plugins: Whether it holds plugins of clada's TensorRT library, which must then be registered before it is read.
        plugin_release: The release of clada that built it; its plugins are of the same.
        sha256: SHA-256 of the engine, in hex.
        manifest: Name of the artifact's manifest, in the engine's folder.
        manifest_sha256: SHA-256 of that file, in hex.
        dtype: T of the graph: "float32" or "float16".
        max_batch: The most texts at once.
        max_prompt: The most tokens of one prefill call: S of the prefill profile.
        capacity: The most tokens of a text, prompt included: slots of the cache. Prefill begins at an empty cache; a
            decode step reads one token, with 1 to `capacity` - 1 in the cache.
        kv_cache: "in_place": `present` outputs hold this call's tokens alone, T[B, H, S, d], and a decode step may read
            slots that are free, at most `capacity`, where its mask, longer by one, is 0. "copied": they hold the past
            too, as in the graph of the artifact.
        profiles: The prefill profile, then the decode profile.
        format_version: Version of this record's format.
    """

    runtime: str
    runtime_version: str
    compute_capability: list[str]
    plugins: bool
    plugin_release: str
    sha256: str
    manifest: str
    manifest_sha256: str
    dtype: str
    max_batch: int
    max_prompt: int
    capacity: int
    kv_cache: str
    profiles: list[Profile]
    format_version: int = FORMAT_VERSION


def record_path(engine: Path) -> Path:
    """Path of an engine's record."""
    return engine.with_name(f"{engine.name}.json")


def record_bytes(record: EngineRecord) -> bytes:
    """Serialize a record with its own hash: a shape's sizes are on one line."""
    text = json.dumps(asdict(record), indent=2, allow_nan=False)
    return sealed_text(re.sub(r"\[[\d\s,]*\]", lambda sizes: " ".join(sizes[0].split()), text))


def write_record(record: EngineRecord, path: Path) -> None:
    """Write a record atomically.

    Args:
        record: The record.
        path: Where: `record_path` of the engine.

    Raises:
        CladaError: The file cannot be written.
    """
    write(path, record_bytes(record))


def read_record(engine: Path) -> EngineRecord:
    """Read the record of an engine, and check that engine and manifest are those it was written for.

    Raises:
        CladaError: A file is not there or cannot be read, the record is not understood, or a hash does not match.
    """
    if not engine.is_file():
        raise CladaError(f"there is no file {engine}")
    path = record_path(engine)
    if not path.is_file():
        raise CladaError(f"{engine} has no {path.name} beside it: it was not made by `clada build`")
    record = _parse(path)
    _check_hash(engine, record.sha256, path, "it was damaged or changed; build it again")
    manifest = engine.parent / record.manifest
    if not manifest.is_file():
        raise CladaError(f"{engine} has no {record.manifest} beside it: copy the files of its artifact there")
    _check_hash(manifest, record.manifest_sha256, path, "the engine was built from another artifact; build it again")
    return record


def _check_hash(file: Path, expected: str, record: Path, reason: str) -> None:
    try:
        found = file_hash(file)
    except OSError as error:
        raise CladaError(f"cannot read {file}: {error.strerror or error}") from error
    if found != expected:
        raise CladaError(f"{file} does not match its hash in {record.name}: {reason}")


def _parse(path: Path) -> EngineRecord:
    content = unsealed(read_bytes(path), path, FORMAT_VERSION, "build the engine again")
    try:
        record = EngineRecord(**content | {"profiles": [_profile(profile) for profile in content["profiles"]]})
        _check_values(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CladaError(f"{path} is damaged ({error}): build the engine again") from error
    return record


def _profile(content: dict[str, Any]) -> Profile:
    shapes = {}
    for name, (smallest, tuned, largest) in content["shapes"].items():
        shapes[str(name)] = (_shape(smallest), _shape(tuned), _shape(largest))
    return Profile(str(content["name"]), shapes)


def _shape(sizes: list[Any]) -> Shape:
    return tuple(int(size) for size in sizes)


def _check_values(record: EngineRecord) -> None:
    for field in fields(record):
        if field.type in (str, int, bool) and type(getattr(record, field.name)) is not field.type:
            raise ValueError(f"{field.name} is {getattr(record, field.name)!r}")
    for name, value, allowed in (
        ("runtime", record.runtime, RUNTIMES),
        ("kv_cache", record.kv_cache, KV_CACHES),
        ("manifest", record.manifest, (MANIFEST_NAME,)),
        ("dtype", record.dtype, DTYPES),
        ("profiles", tuple(profile.name for profile in record.profiles), (PROFILES,)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}")
    for name in ("max_batch", "max_prompt", "capacity"):
        if not 1 <= getattr(record, name) < 2**31:
            raise ValueError(f"{name} is {shown(getattr(record, name))}")
