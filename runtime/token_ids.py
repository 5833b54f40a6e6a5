"""Check of token ids given by a caller."""

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from clada.errors import CladaError


def checked_ids(tokens: Any, what: str, vocabulary: int, tokenizer: Tokenizer) -> list[int]:
    """Return ids as a list, if all of them are in the vocabulary.

    Args:
        tokens: As they were given.
        what: Description of the ids, for the error.
        vocabulary: Size of the model's vocabulary.
        tokenizer: Knows their names.

    Raises:
        CladaError: There are none, they are no token ids, or one is not in the vocabulary.
    """
    if not hasattr(tokens, "__len__") or isinstance(tokens, str | bytes):
        raise CladaError(f"{what} is {tokens!r:.80}; it must be a sequence of token ids")
    if len(tokens) == 0:
        raise CladaError(f"{what} is empty")
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise CladaError(f"{what} holds what is not a token id, an integer: {list(tokens)!r:.80}")
    for token in (int(ids.min()), int(ids.max())):
        if not 0 <= token < vocabulary:
            name = tokenizer.id_to_token(token) if 0 <= token < 2**32 else None
            named = f"{token} ({name})" if name is not None else str(token)
            raise CladaError(f"{what} holds token {named}, which the model's vocabulary of {vocabulary} does not")
    return [int(token) for token in ids.tolist()]
