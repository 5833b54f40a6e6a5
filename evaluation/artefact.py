"""Evaluates an artefact against the checkpoint that it was made from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clada.evaluation.evaluate import Evaluation, evaluate
from clada.evaluation.reference import dense_logits
from clada.evaluation.session_subject import SessionSubject
from clada.evaluation.settings import Settings
from clada.evaluation.suite import prepare
from clada.exporter.checkpoint import load_model
from clada.plugins.errors import CladaError
from clada.runtime import Session

# Largest difference of a dense logit allowed, as a share of their range: float16 needs a tenth of it.
_TOLERANCE = 2e-2


def _check_same_model(session: Session, model: Any, tokenizer: Any, source: str) -> None:
    """Raise CladaError where an artefact cannot have been made from a checkpoint, by what both say of themselves."""
    artefact = session.manifest["model"]
    for name, theirs in (("family", model.config.model_type), ("vocabulary_size", model.config.vocab_size)):
        if artefact[name] != theirs:
            raise CladaError(f"the artefact has {name} {artefact[name]}, but {source} has {theirs}")
    if session.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise CladaError(f"the artefact's tokenizer is not that of {source}")


def _check_same_weights(session: Session, model: Any, prompt: Sequence[int], source: str) -> None:
    """Raise CladaError where the two disagree on a prompt, which both read densely."""
    expected = dense_logits(model, prompt)[-1]
    given = session.prefill([prompt]).logits[0]
    if not np.abs(given - expected).max() <= _TOLERANCE * np.ptp(expected):
        raise CladaError(f"the artefact was not made from {source}: they differ on a prompt, which both read densely")


def evaluate_artefact(
    artefact: Path, source: str, data: Path, settings: Settings | None = None, *, threads: int = 0, **trust: Any
) -> Evaluation:
    """Evaluate an artefact, in the runtime, against the checkpoint that it was made from, in PyTorch.

    Args:
        artefact: Its ONNX file.
        source: The checkpoint's folder or a Hugging Face model id.
        data: A text file, or a JSONL of `{"text": ...}`, that was neither trained nor calibrated on.
        settings: How much to evaluate.
        threads: Of ONNX Runtime; 0 lets it choose.
        trust: `trust_remote_code` and `allow_pickle`, see `load_model`.

    Raises:
        CladaError: Anything given cannot be used, or the artefact is not of the checkpoint.

    Example:
        >>> evaluation = evaluate_artefact(Path("out/model.onnx"), "models/demo", Path("heldout.jsonl"))
        >>> evaluation.metrics["kl"].value
    """
    session = Session(artefact, threads=threads)
    model, tokenizer = load_model(source, torch.float32, **trust)
    _check_same_model(session, model, tokenizer, source)
    suite = prepare(model, tokenizer, data, settings or Settings())
    _check_same_weights(session, model, suite.rows[0][: suite.settings.prompt_tokens], source)
    return evaluate(SessionSubject(session), suite)
