"""The files of an artefact, and its manifest: written by the exporter, checked before anything is run."""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from clada.plugins.errors import CladaError
from clada.plugins.ops import OPS, QUANTIZED, VERSION
from clada.plugins.ops.block_quantization import BITS, BLOCK_SIZES
from clada.runtime.pieces import PIECES_SECTION, piece_hashes
from clada.runtime.pool import PoolPolicy, read_pool_policy

FORMAT_VERSION = 1
MANIFEST_NAME = "clada.json"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
GENERATION_CONFIG_NAME = "generation_config.json"
CONFIG_NAME = "config.json"
POOLS_NAME = "pools.safetensors"

# Of the manifest, where there is a graph with an in-place cache: the ONNX Runtime it needs, and whether its decode
# steps may have inputs of one shape, the mask as long as the cache has room.
IN_PLACE_SECTION = "in_place_cache"
# Of the manifest, where the policy has pools: how they are chosen.
POOL_SECTION = "pool"
# Of the manifest, where weights are quantised: bits a weight, weights a scale, by which method, and which matrices.
QUANTIZATION_SECTION = "quantization"

_SECTIONS = {"model": dict, "policy": dict, "calibration": dict, "ops": dict, "verification": list, "files": dict}


def data_name(model: Path) -> str:
    """Name of the file that holds the weights of an ONNX file."""
    return f"{model.name}.data"


def in_place_name(model: Path) -> str:
    """Name of the file beside an ONNX file that holds its graph with an in-place cache, for ONNX Runtime."""
    return f"{model.stem}.onnxruntime{model.suffix}"


@dataclass(frozen=True)
class Artefact:
    """An exported model on disk.

    Args:
        model: Path of the ONNX file.
        manifest: The content of clada.json.
    """

    model: Path
    manifest: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where all its files lie."""
        return self.model.parent

    @property
    def in_place_model(self) -> Path | None:
        """Path of the graph with an in-place cache, if there is one."""
        return self.folder / in_place_name(self.model) if IN_PLACE_SECTION in self.manifest else None

    @property
    def in_place_needs(self) -> str:
        """The release of ONNX Runtime, "major.minor", from which that graph gives the right results."""
        return str(self.manifest[IN_PLACE_SECTION]["onnxruntime"])

    @property
    def in_place_fixed_shapes(self) -> bool:
        """Whether that graph takes a mask longer than the text; those of releases that wrote no such key do not."""
        return self.manifest[IN_PLACE_SECTION].get("fixed_shapes") is True

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How weights are quantised; None where they are not."""
        section: dict[str, Any] | None = self.manifest.get(QUANTIZATION_SECTION)
        return section

    def pool_policy(self) -> PoolPolicy | None:
        """How pools are chosen; None where every neuron may be used."""
        section = self.manifest.get(POOL_SECTION)
        if section is None:
            return None
        return read_pool_policy(section, self.folder / POOLS_NAME, self.manifest["model"]["neurons"])


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _matches(path: Path, digest: str, pieces: dict[str, Any]) -> bool:
    """Whether a file has its hash; where its pieces are listed, whether those have theirs, which is faster."""
    listed = pieces.get("files", {}).get(path.name)
    return file_hash(path) == digest if listed is None else piece_hashes(path, int(pieces["bytes"])) == listed


def _check_files(folder: Path, names: Iterable[str]) -> None:
    """Raise CladaError where a file lies elsewhere or is missing."""
    for name in names:
        plain = PurePosixPath(name).name == name and PureWindowsPath(name).name == name
        if not plain or name in ("", ".", ".."):
            raise CladaError(f"{MANIFEST_NAME} names the file '{name}', which is not in the artefact's own folder")
        if not (folder / name).is_file():
            raise CladaError(f"the artefact lacks {folder / name}")


def _check_hashes(folder: Path, hashes: dict[str, str], pieces: dict[str, Any]) -> None:
    for name, expected in hashes.items():
        if not _matches(folder / name, expected, pieces):
            raise CladaError(
                f"{folder / name} does not match its hash in {MANIFEST_NAME}: "
                "it was damaged or changed; export it again"
            )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CladaError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise CladaError(f"{path} is not a CLADA manifest: it has no format_version")
    if manifest["format_version"] != FORMAT_VERSION:
        raise CladaError(
            f"{path} has format version {manifest['format_version']}, this runtime reads {FORMAT_VERSION}; "
            "use a matching release of clada"
        )
    missing = [key for key, kind in _SECTIONS.items() if not isinstance(manifest.get(key), kind)]
    if missing:
        raise CladaError(f"{path} is incomplete: {', '.join(missing)}")
    in_place = manifest.get(IN_PLACE_SECTION)
    if IN_PLACE_SECTION in manifest and not (
        isinstance(in_place, dict) and re.fullmatch(r"\d+\.\d+", str(in_place.get("onnxruntime")))
    ):
        raise CladaError(f"{path} is incomplete: {IN_PLACE_SECTION} must name the release of onnxruntime that it needs")
    _check_quantization(path, manifest)
    pieces = manifest.get(PIECES_SECTION)
    if PIECES_SECTION in manifest and not (
        isinstance(pieces, dict)
        and isinstance(pieces.get("bytes"), int)
        and pieces["bytes"] > 0
        and isinstance(pieces.get("files"), dict)
    ):
        raise CladaError(f"{path} is incomplete: {PIECES_SECTION} must give the bytes of a piece, and files")
    for name, version in manifest["ops"].items():
        if name not in OPS or version != VERSION:
            raise CladaError(f"{path} uses op {name} version {version}, which this release of clada does not know")
    return manifest


def _check_quantization(path: Path, manifest: dict[str, Any]) -> None:
    """Raise CladaError where what a manifest says of quantised weights is not what its op takes."""
    section = manifest.get(QUANTIZATION_SECTION, {})
    quantized = any(op.name in manifest["ops"] for op in QUANTIZED.values())
    if quantized != bool(section) or not isinstance(section, dict):
        raise CladaError(f"{path} is incomplete: {QUANTIZATION_SECTION} does not go with the ops it names")
    choices = {"bits": BITS, "block_size": BLOCK_SIZES} if quantized else {}
    for name, values in choices.items():
        if section.get(name) not in values:
            raise CladaError(
                f"{path} has weights with {name} {section.get(name)}, this release of clada knows "
                f"{', '.join(map(str, values))}"
            )


def open_artefact(model: Path | str) -> Artefact:
    """Find an artefact by its ONNX file, and check its manifest and the hash of every file.

    Raises:
        CladaError: The file is missing or not ours, the manifest is not understood, or a hash does not match.
    """
    artefact, weights_checked = begin_to_open_artefact(model)
    weights_checked.result()
    return artefact


def begin_to_open_artefact(model: Path | str) -> tuple[Artefact, Future[None]]:
    """Open an artefact, but for the hash of its weights, nearly all there is to read: that is checked meanwhile.

    Returns:
        The artefact; and what is done once its weights are checked, and fails if their hash does not match. Nothing
        that was made of them may be used before.

    Raises:
        CladaError: As of open_artefact, but for that hash.
    """
    model = Path(model)
    manifest = _manifest_beside(model)
    if model.name not in manifest["files"]:
        path = model.parent / MANIFEST_NAME
        raise CladaError(f"{path} does not list {model.name}: that file was not made by clada-export")
    graphs = [data_name(model)]
    if IN_PLACE_SECTION in manifest:
        graphs.append(in_place_name(model))
    _check_listed(model.parent, manifest, [*graphs, *_companions(manifest)])
    hashes, pieces = dict(manifest["files"]), manifest.get(PIECES_SECTION, {})
    _check_files(model.parent, hashes)
    weights = {data_name(model): hashes.pop(data_name(model))}
    _check_hashes(model.parent, hashes, pieces)
    thread = ThreadPoolExecutor(1)
    weights_checked = thread.submit(_check_hashes, model.parent, weights, pieces)
    thread.shutdown(wait=False)
    return Artefact(model, manifest), weights_checked


def open_artefact_of_engine(engine: Path) -> Artefact:
    """Find an artefact by an engine that was built from it, which stands for its ONNX graphs: they may be elsewhere.

    Raises:
        CladaError: As of open_artefact, but for those graphs.
    """
    manifest = _manifest_beside(engine)
    _check_listed(engine.parent, manifest, _companions(manifest))
    others = {name: digest for name, digest in manifest["files"].items() if ".onnx" not in Path(name).suffixes}
    _check_files(engine.parent, others)
    _check_hashes(engine.parent, others, manifest.get(PIECES_SECTION, {}))
    return Artefact(engine, manifest)


def _manifest_beside(model: Path) -> dict[str, Any]:
    if not model.is_file():
        raise CladaError(f"there is no file {model}")
    path = model.parent / MANIFEST_NAME
    if not path.is_file():
        raise CladaError(f"{model} has no {MANIFEST_NAME} beside it: it was not made by clada-export")
    return _read_manifest(path)


def _companions(manifest: dict[str, Any]) -> list[str]:
    """Names of the files that are read beside a graph."""
    pools = [POOLS_NAME] if POOL_SECTION in manifest else []
    return [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, GENERATION_CONFIG_NAME, *pools]


def _check_listed(folder: Path, manifest: dict[str, Any], names: list[str]) -> None:
    """What is not listed is not checked: every file that is read must be."""
    for name in names:
        if name not in manifest["files"]:
            raise CladaError(f"{folder / MANIFEST_NAME} does not list {name}, which the model needs; export it again")
