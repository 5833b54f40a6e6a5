"""A folder in the place of an artifact: its files are read as if a manifest listed all of them."""

import json
from pathlib import Path
from typing import Any


class PlainFolder:
    """Part of an artifact that its tokenizer's and template's readers use; see Artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:  # noqa: D102 - as Artifact has it
        return self.folder / name

    def content(self, name: str) -> bytes | None:  # noqa: D102
        return self.required(name) if self.path(name).is_file() else None

    def required(self, name: str) -> bytes:  # noqa: D102
        return self.path(name).read_bytes()

    def settings(self, name: str) -> dict[str, Any]:  # noqa: D102
        return json.loads(self.required(name))
