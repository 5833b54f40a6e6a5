"""Changes to an artifact's manifest that leave it consistent, as who wrote it could have made them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clada.contract.files import file_hash
from clada.contract.manifest import MANIFEST_NAME
from clada.contract.sealed_json import SEAL, sealed


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a folder's manifest, less its hash."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    del content[SEAL]
    return content


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a folder's manifest with a hash that fits, whatever it holds; as a new file, which no link shares."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    (folder / MANIFEST_NAME).write_bytes(sealed(content))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's content in place."""
    content = read_manifest(folder)
    change(content)
    write_manifest(folder, content)


def vouch_for(path: Path) -> None:
    """Put a changed file's hash into the manifest beside it."""
    edit_manifest(path.parent, lambda content: content["files"].update({path.name: file_hash(path)}))


def describe_graph(folder: Path, load_map: Any, model: dict[str, Any], **sections: Any) -> None:
    """Have the manifest of a copied artifact tell of another graph, written over its ONNX file, with its load map.

    Args:
        folder: Folder of the copy.
        load_map: Constants of the graph's load signal.
        model: Changes to that section.
        sections: Other sections to replace.
    """
    content = read_manifest(folder)
    content["model"] |= model
    content["calibration"] |= {
        "scale_knots": load_map.scale_knots.tolist(),
        "reanalysis_load": load_map.reanalysis_load.item(),
    }
    content |= sections
    # It is of the graph that was there before.
    del content["in_place_cache"]
    names = [name for name in content["files"] if name != "model.onnxruntime.onnx"]
    content["files"] = {name: file_hash(folder / name) for name in names}
    write_manifest(folder, content)
