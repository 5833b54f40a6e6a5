"""Tokenizer of an artifact."""

from tokenizers import Tokenizer

from clada.contract.artifact import TOKENIZER_NAME, Artifact
from clada.errors import CladaError


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """Read an artifact's tokenizer.

    Raises:
        CladaError: It is damaged, or cannot be read as one.
    """
    content = artifact.required(TOKENIZER_NAME)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more special
        raise CladaError(f"{artifact.path(TOKENIZER_NAME)} holds no tokenizer: {error}; export it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
