"""Files of an artifact: located, and checked against its manifest, before any of them is used."""

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clada.contract.calibrated_values import check_graph
from clada.contract.files import file_hash
from clada.contract.manifest import MANIFEST_NAME, Manifest, QuantizationSection, parse_manifest
from clada.contract.pieces import piece_hashes
from clada.contract.pool import PoolPolicy, read_pool_policy
from clada.errors import CladaError

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
GENERATION_CONFIG_NAME = "generation_config.json"
CONFIG_NAME = "config.json"
POOLS_NAME = "pools.safetensors"

# A folder, within an artifact's, that holds a whole one: an export that is written, and being put in place. While it
# is there, it is the artifact.
PENDING_NAME = ".clada-pending"
_ATTEMPTS = 3

T = TypeVar("T")


def data_name(model: Path) -> str:
    """Name of the file that holds the weights of an ONNX file."""
    return f"{model.name}.data"


def in_place_name(model: Path) -> str:
    """Name of the ONNX file with an in-place cache, for ONNX Runtime, beside the portable one."""
    return f"{model.stem}.onnxruntime{model.suffix}"


def artifact_files(model: Path) -> list[str]:
    """Names of the files an artifact may have, the manifest last."""
    return [
        model.name,
        data_name(model),
        in_place_name(model),
        TOKENIZER_NAME,
        TOKENIZER_CONFIG_NAME,
        CHAT_TEMPLATE_NAME,
        GENERATION_CONFIG_NAME,
        CONFIG_NAME,
        POOLS_NAME,
        MANIFEST_NAME,
    ]


@dataclass(frozen=True)
class Artifact:
    """An exported model on disk.

    Args:
        model: Path of the ONNX file, or of the engine that was built from it.
        manifest: Its manifest.
    """

    model: Path
    manifest: Manifest

    @property
    def folder(self) -> Path:
        """Final folder of the files; `path` gives their current location."""
        return self.model.parent

    def path(self, name: str) -> Path:
        """Current path of a file: an export may be on its way to its place."""
        return _holder(self.folder) / name

    @property
    def in_place_model(self) -> Path | None:
        """Path of the graph with an in-place cache, if there is one."""
        return None if self.manifest.in_place_cache is None else self.path(in_place_name(self.model))

    @property
    def in_place_needs(self) -> str:
        """The release of ONNX Runtime, "major.minor", from which that graph gives the right results."""
        assert self.manifest.in_place_cache is not None
        return self.manifest.in_place_cache.onnxruntime

    @property
    def in_place_fixed_shapes(self) -> bool:
        """Whether that graph takes a mask longer than the text."""
        return self.manifest.in_place_cache is not None and self.manifest.in_place_cache.fixed_shapes

    @property
    def quantization(self) -> QuantizationSection | None:
        """Format of the quantized weights; None where they are not quantized."""
        return self.manifest.quantization

    def check_for_gpu(self) -> None:
        """Raise CladaError for weights that no kernels for GPUs read."""
        if self.manifest.model.weights is not None:
            raise CladaError(
                f"the weights of {self.model} are in {self.manifest.model.weights}, which only the kernels for CPUs "
                "read: export the model with --dtype float16"
            )

    def content(self, name: str) -> bytes | None:
        """Content of one of the smaller files; None where the manifest does not list it, whatever is in the folder.

        Raises:
            CladaError: It cannot be read, or does not match its hash.
        """
        if name not in self.manifest.files:
            return None
        return self._again_if_moved(lambda folder: _checked_content(folder / name, self.manifest))

    def required(self, name: str) -> bytes:
        """Like `content`, for a file that is required.

        Raises:
            CladaError: It is not listed, cannot be read, or does not match its hash.
        """
        content = self.content(name)
        if content is None:
            raise _not_listed(self.folder, name)
        return content

    def settings(self, name: str) -> dict[str, Any]:
        """Object in one of the JSON files, as transformers wrote it.

        Raises:
            CladaError: As of `required`, or it holds none.
        """
        try:
            found = json.loads(self.required(name))
        except CladaError:
            raise
        except (ValueError, RecursionError) as error:
            raise CladaError(f"{self.path(name)} is not valid JSON: {error}; export it again") from error
        if not isinstance(found, dict):
            raise CladaError(f"{self.path(name)} holds no JSON object; export it again")
        return found

    def load_graph(self, name: str, load: Callable[[Path], T]) -> T:
        """Load a graph while its hash and that of its weights are checked again: both files may have changed.

        An error about the hash is more informative than one that follows from the damage.

        Args:
            name: Name of the ONNX file.
            load: Makes something of it; nothing of that is used before the hashes are known.

        Raises:
            CladaError: A file is not there, or does not match its hash.
        """

        def checked(folder: Path) -> T:
            names = [name, data_name(self.model)]
            with ThreadPoolExecutor(1) as thread:
                check = thread.submit(_check_files, folder, names, self.manifest)
                try:
                    return load(folder / name)
                finally:
                    check.result()

        return self._again_if_moved(checked)

    def _again_if_moved(self, use: Callable[[Path], T]) -> T:
        """Use the folder that holds the files, and retry where they were moved meanwhile."""
        for _ in range(_ATTEMPTS):
            folder = _holder(self.folder)
            try:
                return use(folder)
            except CladaError:
                if _holder(self.folder) == folder:
                    raise
        raise CladaError(f"{self.folder} is being written to; try again")

    def pool_policy(self) -> PoolPolicy | None:
        """Policy by which pools are chosen; None where every neuron may be used.

        Raises:
            CladaError: The file of its tensors is damaged, or does not hold what it must.
        """
        section = self.manifest.pool
        if section is None:
            return None
        return read_pool_policy(section, self.required(POOLS_NAME), self.path(POOLS_NAME), self.manifest.model.neurons)


def _holder(folder: Path) -> Path:
    """Folder that holds the files of an artifact: its own, or the pending one inside it."""
    pending = folder / PENDING_NAME
    return pending if _is_file(pending / MANIFEST_NAME) else folder


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> CladaError:
    return CladaError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


def _not_listed(folder: Path, name: str) -> CladaError:
    return CladaError(f"{folder / MANIFEST_NAME} does not list {name}, which the model needs; export it again")


def _damaged(path: Path) -> CladaError:
    return CladaError(f"{path} does not match its hash in {MANIFEST_NAME}: it was damaged or changed; export it again")


def _read(path: Path) -> bytes:
    _check_there(path.parent, [path.name])
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _checked_content(path: Path, manifest: Manifest) -> bytes:
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != manifest.files[path.name]:
        raise _damaged(path)
    return content


def _check_graph(path: Path, data: Path, manifest: Manifest) -> None:
    try:
        check_graph(path, _checked_content(path, manifest), data, manifest)
    except CladaError:
        # Where the file that holds the values is damaged, that says more.
        _check_files(data.parent, [data.name], manifest)
        raise


def _check_there(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if not _is_file(folder / name):
            raise CladaError(f"the artifact lacks {folder / name}")


def _check_files(folder: Path, names: Iterable[str], manifest: Manifest) -> None:
    """Raise CladaError where a file is missing or does not match its hash, or its pieces' hashes, which is faster."""
    for name in names:
        path, pieces = folder / name, manifest.pieces
        _check_there(folder, [name])
        try:
            if pieces is None or name not in pieces.files:
                matches = file_hash(path) == manifest.files[name]
            else:
                listed = pieces.files[name]
                fits = -(-path.stat().st_size // pieces.bytes) == len(listed)
                matches = fits and piece_hashes(path, pieces.bytes) == list(listed)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not matches:
            raise _damaged(path)


def open_artifact(model: Path | str, *, check_weights: bool = True) -> Artifact:
    """Open an artifact by its ONNX file; check its manifest, the hash of every file, and its calibrated values.

    Args:
        model: The ONNX file.
        check_weights: False to leave out the hash of the weights, nearly all there is to read: `load_graph` checks it.

    Raises:
        CladaError: A file is missing, not ours or not readable, a hash does not match, or a value makes no sense.
    """

    def checked(folder: Path, model: Path) -> Artifact:
        manifest = _read_manifest(folder)
        if model.name not in manifest.files:
            raise CladaError(
                f"{folder / MANIFEST_NAME} does not list {model.name}: that file was not made by clada-export"
            )
        graphs = [model.name] if manifest.in_place_cache is None else [model.name, in_place_name(model)]
        _check_listed(folder, manifest, [data_name(model), *graphs, *_companions(manifest)])
        _check_there(folder, manifest.files)
        _check_files(folder, [name for name in manifest.files if name not in (data_name(model), *graphs)], manifest)
        if check_weights:
            _check_files(folder, [data_name(model)], manifest)
        for name in graphs:
            _check_graph(folder / name, folder / data_name(model), manifest)
        return Artifact(model, manifest)

    return _open(Path(model), checked)


def open_artifact_of_engine(engine: Path) -> Artifact:
    """Open an artifact by an engine built from it, which replaces its ONNX graphs: those may be elsewhere.

    Raises:
        CladaError: As of open_artifact, but for those graphs.
    """

    def checked(folder: Path, engine: Path) -> Artifact:
        manifest = _read_manifest(folder)
        _check_listed(folder, manifest, _companions(manifest))
        _check_files(folder, [name for name in manifest.files if ".onnx" not in Path(name).suffixes], manifest)
        return Artifact(engine, manifest)

    return _open(engine, checked)


def _open(model: Path, checked: Callable[[Path, Path], Artifact]) -> Artifact:
    """Check an artifact, again where an export to its folder replaces it meanwhile."""
    for _ in range(_ATTEMPTS):
        state = _state(model.parent)
        folder = _holder(model.parent)
        try:
            _check_is_one(folder, model)
            artifact = checked(folder, model)
            artifact.pool_policy()
        except CladaError:
            if _state(model.parent) == state:
                raise
            continue
        if folder != model.parent:
            warnings.warn(
                f"an export to {model.parent} was interrupted while it was put in place; reading it from {folder}, "
                "until the next export there puts it in place",
                stacklevel=3,
            )
        return artifact
    raise CladaError(f"{model.parent} is being written to; try again")


def _check_is_one(folder: Path, model: Path) -> None:
    if not _is_file(model) and not _is_file(folder / model.name):
        raise CladaError(f"there is no file {model}")
    if not _is_file(folder / MANIFEST_NAME):
        raise CladaError(f"{model} has no {MANIFEST_NAME} beside it: it was not made by clada-export")


def _state(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """Identity of a folder's artifact, which changes when it is replaced."""
    return _identity(folder / PENDING_NAME / MANIFEST_NAME), _identity(folder / MANIFEST_NAME)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        at = path.stat()
    except (OSError, ValueError):
        return None
    return at.st_ino, at.st_mtime_ns


def _read_manifest(folder: Path) -> Manifest:
    return parse_manifest(_read(folder / MANIFEST_NAME), folder / MANIFEST_NAME)


def _companions(manifest: Manifest) -> list[str]:
    """Names of the files that are read beside a graph."""
    pools = [] if manifest.pool is None else [POOLS_NAME]
    return [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, GENERATION_CONFIG_NAME, *pools]


def _check_listed(folder: Path, manifest: Manifest, names: list[str]) -> None:
    """Raise CladaError for files that the manifest does not list: every file that is read must be checked."""
    for name in names:
        if name not in manifest.files:
            raise _not_listed(folder, name)
