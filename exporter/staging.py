"""Writes an artefact's files in one go: all of them appear, or none."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clada.plugins.errors import CladaError
from clada.runtime.artefact import artefact_files
from clada.runtime.manifest import MANIFEST_NAME


def _check_target(model: Path, overwrite: bool) -> None:
    if model.suffix != ".onnx":
        raise CladaError(f"the output is {model}; it must be the path of an .onnx file")
    if overwrite:
        return
    for name in artefact_files(model):
        if (model.parent / name).exists():
            raise CladaError(f"{model.parent / name} exists; pass --overwrite to replace the artefact there")


def _replaced_files(folder: Path) -> set[str]:
    """Files of the artefact that is in a folder now, by its manifest."""
    try:
        listed = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in listed if Path(name).name == name}


@contextmanager
def staged(model: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write an artefact in; its files move to their place when the context ends without an error.

    Args:
        model: Where the ONNX file is to be.
        overwrite: Replace what is there.

    Raises:
        CladaError: Something is there already, or the folder cannot be written.
    """
    _check_target(model, overwrite)
    folder = model.parent
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    staging: Path | None = None
    done = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".clada-", dir=folder))
        yield staging
        stale = _replaced_files(folder)
        # Without its manifest nothing is taken for an artefact: an interruption from here on leaves none.
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        written = [name for name in artefact_files(model) if (staging / name).exists()]
        for name in stale - set(written):
            (folder / name).unlink(missing_ok=True)
        for name in written:
            (staging / name).replace(folder / name)
        done = True
    except OSError as error:
        raise CladaError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not done:
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()
