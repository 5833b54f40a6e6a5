"""JSON files that carry their own hash: a file with one changed bit, anywhere, is refused."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from clada.contract.typed_json import WrongValueError, load, shown
from clada.errors import CladaError

# The last key; its value is the SHA-256 of every byte before that value.
SEAL = "seal"
VERSION_KEY = "format_version"
_END = re.compile(rb'"([0-9a-f]{64})"\n\}\n', re.ASCII)
_END_BYTES = 64 + len('""\n}\n')


def sealed(content: dict[str, Any]) -> bytes:
    """Serialize a JSON object with its hash."""
    return sealed_text(json.dumps(content, indent=2))


def sealed_text(text: str) -> bytes:
    """Add its hash to a JSON object that was written with an indent of 2."""
    start = text.removesuffix("\n}")
    before = f'{start},\n  "{SEAL}": '.encode()
    return before + f'"{hashlib.sha256(before).hexdigest()}"\n}}\n'.encode()


def unsealed(content: bytes, path: Path, version: int, again: str) -> dict[str, Any]:
    """Parse a sealed file, check its hash, and return the object without it.

    Args:
        content: Content of the file.
        path: Path of the file.
        version: The format version that is read.
        again: Command that writes a new file, for an error about another version or damage.

    Raises:
        CladaError: It is not valid JSON, of another version, or does not match its hash.
    """
    before, end = content[:-_END_BYTES], _END.fullmatch(content[-_END_BYTES:])
    matches = end is not None and hashlib.sha256(before).hexdigest().encode() == end[1]
    try:
        found = load(content)
    except WrongValueError as error:
        raise CladaError(f"{path}: {error}; {again}") from error
    if VERSION_KEY not in found:
        raise CladaError(f"{path} was not made by clada: it has no {VERSION_KEY}")
    given = found[VERSION_KEY]
    if type(given) is not int or given != version:
        older = type(given) is int and given < version
        advice = f"it was made by an older release of clada: {again}" if older else "use a matching release of clada"
        raise CladaError(f"{path} has format version {shown(given)}, this release reads {version}; {advice}")
    if not matches:
        raise CladaError(f"{path} does not match the hash that it ends in: it was damaged or changed; {again}")
    del found[SEAL]
    return found
