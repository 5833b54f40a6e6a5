"""Dense model in PyTorch, as the subject of an evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clada.evaluation.reference import dense_logits
from clada.evaluation.scores import log_softmax
from clada.evaluation.subject import Reading, Subject, SubjectInfo


class DenseSubject(Subject):
    """Causal LM read in one pass, which gives the same logits as decode. There is no load.

    Args:
        model: In float32.
        info: Description of it in a result.
    """

    def __init__(self, model: Any, info: SubjectInfo) -> None:
        self.model, self.info = model, info

    def read(self, row: Sequence[int], prompt_tokens: int) -> Reading:
        """See Subject."""
        logits = dense_logits(self.model, row)
        log_p = log_softmax(logits[prompt_tokens - 1 : -2])
        tokens = np.array(row[prompt_tokens:-1])
        neurons = np.tile(np.array(self.info.neurons, np.int32), (len(tokens), 1))
        return Reading(
            logits=logits[prompt_tokens:-1],
            load=np.zeros(len(tokens), np.float32),
            surprisal=-log_p[np.arange(len(tokens)), tokens].astype(np.float32),
            entropy=-(np.exp(log_p) * log_p).sum(axis=-1).astype(np.float32),
            read_fraction=np.ones(len(tokens), np.float32),
            active=neurons,
            pool=neurons,
        )
