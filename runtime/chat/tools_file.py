"""Functions that a model may call, read from a file."""

import json
from pathlib import Path
from typing import Any

from clada.contract.typed_json import read_bytes
from clada.errors import CladaError
from clada.runtime.chat.messages import plain_tools


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of functions, each as OpenAI's API takes it.

    Raises:
        CladaError: The file cannot be read, or holds no such list.
    """
    content = read_bytes(path)
    try:
        tools = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CladaError(f"{path} is not valid JSON: {error}") from error
    try:
        return plain_tools(tools)
    except CladaError as error:
        raise CladaError(f"{path}: {error}") from error
