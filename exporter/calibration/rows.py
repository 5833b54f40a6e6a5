"""Tokens that a model is calibrated on, and their description."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clada.exporter.calibration.text import (
    Document,
    digest,
    has_chat_template,
    is_chat,
    read_documents,
    row_length,
    sample_file,
    token_rows,
)
from clada.exporter.model.rope import context_length


@dataclass(frozen=True)
class CalibrationText:
    """Text to calibrate on.

    Args:
        path: Path of the text; the sample that ships with the project where None.
        documents: Documents of the text.
    """

    path: Path | None
    documents: Sequence[Document]

    @property
    def name(self) -> str:
        """Name of its file."""
        return (self.path or sample_file()).name

    @property
    def sha256(self) -> str:
        """SHA-256 of its file."""
        return digest(self.path or sample_file())


@dataclass(frozen=True)
class CalibrationRows:
    """Tokens to calibrate on.

    Args:
        decoded: i64[N, S], those that are decoded; all there are where neurons are skipped.
        further: i64[M, S], those that are only read densely.
    """

    decoded: Tensor
    further: Tensor

    @property
    def whole(self) -> Tensor:
        """All rows, i64[N + M, S]."""
        return torch.cat([self.decoded, self.further])


def read_calibration_text(path: Path | None) -> CalibrationText:
    """Read a text to calibrate on; see `read_documents`."""
    return CalibrationText(path, read_documents(path or sample_file()))


def calibration_rows(
    text: CalibrationText,
    texts: list[str],
    tokenizer: Any,
    hf_config: Any,
    tokens: int,
    seed: int,
    report: Callable[[str], None],
    further: int = 0,
    what: str = "calibrating",
) -> CalibrationRows:
    """Draw rows of tokens for a model of this configuration.

    Args:
        text: Where it comes from.
        texts: Texts after the chat template, see `texts_of`.
        tokenizer: Tokenizer of the model.
        hf_config: Configuration of the model.
        tokens: Number of tokens to use.
        seed: Decides which parts of the text are used.
        report: Called with lines that say what is calibrated on.
        further: Number of tokens read densely for each of these, as far as the text goes.
        what: Is done with them.

    Raises:
        CladaError: The text is too short.
    """

    def drawn(count: int) -> Tensor:
        length = row_length(context_length(hf_config))
        return token_rows(texts, tokenizer, vocabulary=hf_config.vocab_size, tokens=count, length=length, seed=seed)

    rows = drawn(tokens)
    report(
        f"{what} on {rows.numel():,} tokens of "
        + (str(text.path) if text.path else "Python sources, which come with clada")
    )
    if has_chat_template(tokenizer) and not is_chat(text.documents):
        report(
            "note: the model has a chat template, and this text is no conversation: --calibration-data takes a JSONL "
            "file of messages"
        )
    # What is drawn first does not depend on how much is drawn.
    return CalibrationRows(rows, drawn((1 + further) * tokens)[len(rows) :])
