"""Tokenizer of an artefact."""

from tokenizers import Tokenizer

from clada.contract.artefact import TOKENIZER_NAME, Artefact
from clada.errors import CladaError


def load_tokenizer(artefact: Artefact) -> Tokenizer:
    """Read an artefact's tokenizer.

    Raises:
        CladaError: It is damaged, or cannot be read as one.
    """
    content = artefact.required(TOKENIZER_NAME)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more special
        raise CladaError(f"{artefact.path(TOKENIZER_NAME)} holds no tokenizer: {error}; export it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
