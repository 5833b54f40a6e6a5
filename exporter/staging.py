"""Atomic placement of an artifact: at every moment its folder holds the old one, whole, or the new one.

The files are written in a folder within the output's. One rename of that folder, to PENDING_NAME, makes it what every
reader of the output folder reads. Then its files are linked to where they belong, the manifest last, and the pending
folder goes away. What a killed process left is finished, or cleared, by the next export to the folder.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clada.contract.artifact import PENDING_NAME, artifact_files, data_name, open_artifact
from clada.contract.files import file_hash
from clada.contract.manifest import MANIFEST_NAME
from clada.contract.typed_json import WrongValueError, load
from clada.errors import CladaError
from clada.exporter.folder_lock import locked
from clada.exporter.signals import cleaned_up, finished

_STAGING = ".clada-export-"
# Folders that this release, or the first one, writes to; a killed process leaves them.
_LEFTOVER = re.compile(r"\.clada-(export-[0-9a-f]{8}|[a-z0-9_]{8})")
_LINK = ".link"


@contextmanager
def staged(model: Path, overwrite: bool) -> Iterator[Path]:
    """Create a folder for an artifact's files, which replaces the existing one when the context ends without an error.

    Args:
        model: Final path of the ONNX file.
        overwrite: Replace what is there.

    Raises:
        CladaError: Something is there already, another export is writing there, or the folder cannot be written.
    """
    if model.suffix != ".onnx":
        raise CladaError(f"the output is {model}; it must be the path of an .onnx file")
    folder = model.parent
    done = False
    missing: list[Path] = []
    try:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with cleaned_up(), locked(folder):
            _finish(folder, overwrite)
            _clear_leftovers(folder)
            _check_targets(model, overwrite)
            staging = folder / f"{_STAGING}{secrets.token_hex(4)}"
            try:
                # Not by tempfile: that makes folders for their owner alone.
                staging.mkdir()
                yield staging
                _check_targets(model, overwrite)
                _prepare(staging)
                with finished():
                    staging.rename(folder / PENDING_NAME)
                    _place(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        done = True
    except OSError as error:
        raise CladaError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    finally:
        if not done:
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _check_targets(model: Path, overwrite: bool) -> None:
    for name in artifact_files(model):
        path = model.parent / name
        if _is_folder(path):
            raise CladaError(f"cannot write {path}: it is a folder; remove it, or choose another output")
        if not overwrite and os.path.lexists(path):
            raise CladaError(f"{path} exists; pass --overwrite to replace the artifact there")
    if os.path.lexists(model.parent / PENDING_NAME):
        raise CladaError(f"{model.parent / PENDING_NAME} is in the way: remove it")


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _clear_leftovers(folder: Path) -> None:
    """Remove the leftovers of killed exports: the lock is ours, so none of it is in use."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and _is_folder(path):
            shutil.rmtree(path, ignore_errors=True)


def _prepare(staging: Path) -> None:
    """Set the usual mode of files that were created for their owner alone, and flush all of them to the disk."""
    mode = stat.S_IMODE(staging.stat().st_mode) & 0o666
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
            continue
        path.chmod(mode)
        _sync(path)
    _sync(staging)


def _sync(path: Path) -> None:
    if os.name == "nt":  # knows no such thing for a folder, nor for a file that is open to be read
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finish(folder: Path, overwrite: bool) -> None:
    """Place an artifact that a killed export left pending; one that cannot be read is replaced with the rest."""
    pending = folder / PENDING_NAME
    if not _is_folder(pending):
        return
    if _is_whole(pending):
        with finished():
            _place(folder)
    elif overwrite:
        shutil.rmtree(pending)


def _is_whole(folder: Path) -> bool:
    models = _models(_listed(folder))
    try:
        for name in models[:1]:
            open_artifact(folder / name)
    except CladaError:
        return False
    return bool(models)


def _place(folder: Path) -> None:
    """Place the pending artifact where it belongs; until that is done, readers find it where it is."""
    pending = folder / PENDING_NAME
    try:
        names = [*_listed(pending), MANIFEST_NAME]
        for name in _replaced(folder, names):
            (folder / name).unlink(missing_ok=True)
        for name in names:
            _put(pending / name, folder / name)
        _sync(folder)
        aside = folder / f"{_STAGING}{secrets.token_hex(4)}"
        pending.rename(aside)
    except OSError as error:
        raise CladaError(
            f"cannot put the files of {pending} in place: {error.strerror or error}; they are whole, and read from "
            "there; the next export to this folder puts them in place"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def _put(source: Path, target: Path) -> None:
    """Link a file to a second name, replacing atomically whatever has that name."""
    link = source.with_name(f"{source.name}{_LINK}")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copy(source, link)
        _sync(link)
    link.replace(target)


def _listed(folder: Path) -> dict[str, str]:
    """Files and hashes listed in a folder's manifest, of any version; none where it cannot be read."""
    try:
        files = load((folder / MANIFEST_NAME).read_bytes()).get("files")
    except (OSError, WrongValueError):
        return {}
    return files if isinstance(files, dict) else {}


def _models(files: dict[str, str]) -> list[str]:
    """ONNX files among listed files whose weights are listed too."""
    return [name for name in files if name.endswith(".onnx") and data_name(Path(name)) in files]


def _replaced(folder: Path, kept: list[str]) -> list[str]:
    """Files of the artifact listed in a folder's manifest, except those that are kept.

    A manifest may list anything: only what has a name that an export writes, and is still what was written, is ours.
    """
    files = _listed(folder)
    ours = {name for model in _models(files) for name in artifact_files(Path(model))} - {MANIFEST_NAME, *kept}
    return [name for name in sorted(ours) if name in files and _has_hash(folder / name, files[name])]


def _has_hash(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and file_hash(path) == digest
    except OSError:
        return False
