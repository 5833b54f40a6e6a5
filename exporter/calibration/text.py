"""Calibration text, read and cut into rows of tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.contract.files import file_hash
from clada.errors import CladaError
from clada.runtime.chat.template import render

CALIBRATION_DATA = "calibration data"
_ROW_LENGTH = 256
_SHORTEST_CONTEXT = 64
_PIECE = 16_000  # characters; long texts are drawn from in pieces


def sample_file() -> Path:
    """Path of the sample text that ships with the project: sources of Python's standard library."""
    return Path(str(files("clada.exporter") / "data" / "calibration.jsonl"))


@dataclass(frozen=True)
class Document:
    """Text, or conversation that becomes one by a chat template.

    Args:
        where: The file, and the line where there are several.
        content: The text, or the messages.
    """

    where: str
    content: str | list[dict[str, Any]]


def read_documents(path: Path, what: str = CALIBRATION_DATA) -> list[Document]:
    """Read a text file, or a JSONL file (suffix .jsonl): one object a line, with a `text` or the `messages` of a chat.

    Args:
        path: The file.
        what: Name of the file in an error.

    Raises:
        CladaError: The file is missing, empty, not UTF-8, or a line is not such an object.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CladaError(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CladaError(f"the {what} {path} is not UTF-8 text: byte {error.start} is invalid") from error
    documents = [Document(str(path), content)]
    if path.suffix == ".jsonl":
        lines = enumerate(content.split("\n"), start=1)
        documents = [_document(f"{path}, line {number}", line) for number, line in lines if line.strip()]
    documents = [d for d in documents if not isinstance(d.content, str) or d.content.strip()]
    if not documents:
        raise CladaError(f"the {what} {path} is empty")
    return documents


def _document(where: str, line: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        text, messages = row.get("text"), row.get("messages")
        if isinstance(text, str) and _is_unicode(text):
            return Document(where, text)
        if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
            return Document(where, messages)
    raise CladaError(f'{where}: expected an object with a "text" field, or with the "messages" of a conversation')


def _is_unicode(text: str) -> bool:
    """Whether a text is whole characters: JSON can write halves."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_chat(documents: Sequence[Document]) -> bool:
    """Whether any of them is a conversation."""
    return any(not isinstance(document.content, str) for document in documents)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a Hugging Face tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def texts_of(documents: Sequence[Document], tokenizer: Any = None) -> list[str]:
    """Texts of documents, conversations written by the chat template.

    Args:
        documents: As read_documents gives them.
        tokenizer: A Hugging Face tokenizer, whose chat template writes conversations.

    Raises:
        CladaError: There are conversations, and no chat template, or it refuses one.
    """
    template = None
    if is_chat(documents) and has_chat_template(tokenizer):
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise CladaError(f"the model has no chat template that is its default: {error}") from error
    texts = []
    for document in documents:
        if isinstance(document.content, str):
            texts.append(document.content)
            continue
        if template is None:
            raise CladaError(f"{document.where}: a conversation needs a chat template, and the model has none")
        tokens = tokenizer.special_tokens_map
        try:
            text = render(template, document.content, tokens, add_generation_prompt=False)
        except CladaError as error:
            raise CladaError(f"{document.where}: {error}") from error
        if not _is_unicode(text):
            raise CladaError(f"{document.where}: the conversation holds half a character")
        # Every row begins as the tokenizer begins a text: what begins this one is not to be there twice.
        texts.append(text.removeprefix(tokens.get("bos_token", "")) if tokenizer("").input_ids else text)
    return texts


def read_texts(path: Path, what: str = CALIBRATION_DATA, tokenizer: Any = None) -> list[str]:
    """The texts of a file: see read_documents and texts_of."""
    return texts_of(read_documents(path, what), tokenizer)


def row_length(context_length: int) -> int:
    """Number of tokens in a calibration row for a model's context.

    Raises:
        CladaError: The context is too short to calibrate in.
    """
    if context_length < _SHORTEST_CONTEXT:
        raise CladaError(f"the model's context is {context_length} tokens; at least {_SHORTEST_CONTEXT} are needed")
    return min(_ROW_LENGTH, context_length)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return file_hash(path)


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
        texts: Texts to draw from.
        tokenizer: A Hugging Face tokenizer.
        vocabulary: Size of the model's vocabulary.
        tokens: Approximate number of tokens to draw; fewer where the texts are shorter.
        length: Tokens in a row.
        seed: Decides which pieces of the texts are drawn.
        what: Name of the texts in an error.

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
