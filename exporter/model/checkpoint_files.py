"""Files of a Hugging Face checkpoint: what may be read of them, with one line of explanation where nothing may."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from clada.errors import CladaError

# The file of a checkpoint's weights, and where transformers lists them when they are in parts.
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_GENERATION_CONFIG = "generation_config.json"
# As safetensors name them.
_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
ADAPTER_CONFIG = "adapter_config.json"
_GGUF = ".gguf"


def one_line(error: BaseException) -> str:
    """Text of an error, or its type where it has none, in one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def reading(what: str, source: str) -> Iterator[None]:
    """Turn any error within the context into that of a checkpoint that cannot be read.

    Every kind: transformers meets a file that makes no sense wherever it first uses what it says.
    """
    try:
        yield
    except CladaError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError | SafetensorError) else f"{type(error).__name__}: "
        raise CladaError(f"cannot read the {what} of {source}: {kind}{one_line(error)}") from error


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CladaError(f"{path} is not a JSON object")
    return content


def _parts(source: str) -> tuple[str, dict[str, Any]] | None:
    """The list of a checkpoint's parts: its path, and the file of each tensor; None where there is none."""
    with reading("list of weight files", source):
        path = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False)
        if path is None:
            return None
        parts = json_object(Path(path)).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
            raise CladaError(f"{path} lists no weight files: it needs a weight_map of tensor names to file names")
        return path, parts


def check_index(source: str, allow_pickle: bool) -> None:
    """Raise CladaError where a list of parts names anything but a safetensors file of the checkpoint's own folder."""
    listed = _parts(source)
    path, parts = listed or ("", {})
    for name in sorted(set(parts.values())):
        if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
            raise CladaError(f"{path} names the file '{name}', which is not in the checkpoint's own folder")
        if not allow_pickle and not name.endswith(".safetensors"):
            raise CladaError(
                f"{path} names the pickle file '{name}', which can run code when read; "
                "convert the checkpoint to safetensors, or pass --allow-pickle if you trust it"
            )


def weight_files(source: str) -> list[Path]:
    """Safetensors of a checkpoint whose list of parts, where it has one, was checked."""
    listed = _parts(source)
    names = [_WEIGHTS] if listed is None else sorted(set(listed[1].values()))
    return [Path(str(cached_file(source, name))) for name in names]


def narrow_type(source: str) -> torch.dtype | None:
    """The 16-bit type that all of a checkpoint's tensors are in; None where that is another, or there are several."""
    found: set[str] = set()
    for file in weight_files(source):
        with safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118, it is no mapping
    return _NARROW.get(found.pop()) if len(found) == 1 else None


def is_gguf(source: str) -> bool:
    """Whether a source is a GGUF file."""
    return source.endswith(_GGUF) and Path(source).is_file()


def check_source(source: str, allow_pickle: bool) -> None:
    """Raise CladaError for a source of a model that is none, or holds pickles where they are not allowed."""
    path = Path(source)
    if is_gguf(source):
        return
    if path.is_dir():
        if (path / ADAPTER_CONFIG).exists():
            raise CladaError(
                f"{source} holds an adapter ({ADAPTER_CONFIG}): give its model, and the adapter by --adapter {source}"
            )
        if not (path / "config.json").is_file():
            raise CladaError(
                f"{source} holds no config.json, so it is not a Hugging Face checkpoint"
                + ("; it holds GGUF files: give the path of one" if any(path.glob(f"*{_GGUF}")) else "")
            )
        if not allow_pickle and not any(path.glob("*.safetensors")):
            if any(path.glob("*.bin")):
                raise CladaError(
                    f"{source} holds only a pickle checkpoint, which can run code when read; "
                    "convert it to safetensors, or pass --allow-pickle if you trust it"
                )
            raise CladaError(f"{source} holds no *.safetensors file")
        if (path / _GENERATION_CONFIG).exists():
            # transformers goes on without one that it cannot read, and so without the tokens that end a text.
            with reading("generation configuration", source):
                json_object(path / _GENERATION_CONFIG)
    elif path.exists():
        raise CladaError(
            f"{source} is a file, and no GGUF; give a checkpoint's folder, a *{_GGUF} file or a Hugging Face model id"
        )
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CladaError(f"no model at {source}: there is no such folder")
