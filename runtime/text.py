"""The tokenizer of an artefact."""

from pathlib import Path

from tokenizers import Tokenizer

from clada.runtime.artefact import TOKENIZER_NAME


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read an artefact's tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
