"""Location of an ONNX file's weights, checked here: releases of ONNX Runtime differ in what they let a file name.

That an artifact's are in the file that its manifest lists is checked when it is opened (calibrated_values.py).
"""

from pathlib import Path, PurePosixPath, PureWindowsPath

from clada.contract.onnx_wire import external_files
from clada.errors import CladaError


def check_external_data(model: Path) -> None:
    """Check that all weights of an ONNX file are in the file itself or in files beside it.

    Args:
        model: The ONNX file.

    Raises:
        CladaError: The file cannot be read or is no ONNX file, or names another place.
    """
    for name in sorted(_external_files(model)):
        if not _is_beside(name):
            raise CladaError(
                f"{model} has weights in {name!r}, which is not the name of a file beside it; export it again"
            )
        if not (model.parent / name).is_file():
            raise CladaError(f"{model} has weights in {name}, and there is no such file beside it")


def _external_files(model: Path) -> set[str]:
    try:
        return external_files(model.read_bytes())
    except OSError as error:
        raise CladaError(f"{model} cannot be read: {error.strerror or error}") from error
    # What is cut short, is not made of fields, or holds names that are no text.
    except (ValueError, IndexError) as error:
        raise CladaError(f"{model} is damaged: it is no ONNX file ({error})") from error


def _is_beside(name: str) -> bool:
    """Whether a name is that of a file, on any system, without a path."""
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and all(kind(name).name == name and not kind(name).drive for kind in (PurePosixPath, PureWindowsPath))
    )
