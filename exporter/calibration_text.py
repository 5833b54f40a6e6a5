"""Reads calibration text and cuts it into rows of tokens."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.plugins.errors import CladaError

CALIBRATION_DATA = "calibration data"
_ROW_LENGTH = 256
_SHORTEST_CONTEXT = 64
_PIECE = 16_000  # characters; long texts are drawn from in pieces


def sample_file() -> Path:
    """The sample text that ships with the project: sources of Python's standard library."""
    return Path(str(files("clada.exporter") / "data" / "calibration.jsonl"))


def read_texts(path: Path, what: str = CALIBRATION_DATA) -> list[str]:
    """Read a text file, or the `text` fields of a JSONL file (suffix .jsonl), one text a line.

    Args:
        path: The file.
        what: What an error calls it.

    Raises:
        CladaError: The file is missing, empty, not UTF-8, or a line is not such an object.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CladaError(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CladaError(f"the {what} {path} is not UTF-8 text: byte {error.start} is invalid") from error
    texts = [content]
    if path.suffix == ".jsonl":
        texts = []
        for number, line in enumerate(content.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise CladaError(f'{path}, line {number}: expected an object with a "text" field')
            texts.append(text)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise CladaError(f"the {what} {path} is empty")
    return texts


def row_length(context_length: int) -> int:
    """Tokens in a calibration row for a model's context.

    Raises:
        CladaError: The context is too short to calibrate in.
    """
    if context_length < _SHORTEST_CONTEXT:
        raise CladaError(f"the model's context is {context_length} tokens; at least {_SHORTEST_CONTEXT} are needed")
    return min(_ROW_LENGTH, context_length)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def token_rows(
    texts: list[str],
    tokenizer: Any,
    *,
    vocabulary: int,
    tokens: int,
    length: int,
    seed: int = 0,
    what: str = CALIBRATION_DATA,
) -> Tensor:
    """Draw rows of consecutive tokens, each begun as the tokenizer begins a text.

    Args:
        texts: What to draw from.
        tokenizer: A Hugging Face tokenizer.
        vocabulary: Size of the model's vocabulary.
        tokens: How many tokens to draw, about; fewer where the texts are shorter.
        length: Tokens in a row.
        seed: Decides which pieces of the texts are drawn.
        what: What an error calls the texts.

    Returns:
        i64[N, length].

    Raises:
        CladaError: The texts do not fill one row, or the tokenizer knows more tokens than the model.
    """
    start = list(tokenizer("").input_ids)
    width = length - len(start)
    pieces = [text[i : i + _PIECE] for text in texts for i in range(0, len(text), _PIECE)]
    stream: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(pieces)):
        stream += tokenizer(pieces[index], add_special_tokens=False).input_ids
        if len(stream) >= tokens:
            break
    count = min(len(stream), tokens) // width
    if count == 0:
        raise CladaError(f"the {what} has {len(stream)} tokens; at least {width} are needed")
    rows = torch.tensor(stream[: count * width]).reshape(count, width)
    vocabulary_needed = max(stream + start) + 1
    if vocabulary_needed > vocabulary:
        raise CladaError(
            f"the tokenizer gives token {vocabulary_needed - 1}, the model's vocabulary has only {vocabulary}: "
            "the tokenizer is another model's"
        )
    return torch.cat([torch.tensor(start, dtype=torch.int64).repeat(count, 1), rows], dim=1)
