"""Evaluation of an artifact against the checkpoint that it was made from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clada.contract.artifact import Artifact
from clada.contract.typed_json import plain
from clada.contract.weight_bytes import weight_bytes
from clada.errors import CladaError
from clada.evaluation.dense_subject import DenseSubject
from clada.evaluation.evaluate import Evaluation, evaluate
from clada.evaluation.reference import dense_logits
from clada.evaluation.session_subject import SessionSubject, policy_name
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.subject import SubjectInfo, with_weights
from clada.evaluation.suite import prepare
from clada.evaluation.torch_session import TorchSession
from clada.exporter.from_artifact import make_sparse
from clada.exporter.model.checkpoint import load_model
from clada.runtime import Session

# Largest difference of a dense logit allowed, as a share of their range: float16 needs a tenth of it.
_TOLERANCE = 2e-2
# The same where tokens are rounded to 8 bits for products with quantized weights; that needs a fifth of it.
_QUANTIZED_TOLERANCE = 1e-1


def _check_same_model(session: Session, model: Any, tokenizer: Any, source: str) -> None:
    """Raise CladaError where an artifact cannot have been made from a checkpoint, by their metadata."""
    artifact = session.manifest.model
    for name, theirs in (("family", model.config.model_type), ("vocabulary_size", model.config.vocab_size)):
        ours = getattr(artifact, name)
        if ours != theirs:
            raise CladaError(f"the artifact has {name} {ours}, but {source} has {theirs}")
    if session.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise CladaError(f"the artifact's tokenizer is not that of {source}")


def _check_same_weights(session: Session, model: Any, prompt: Sequence[int], source: str) -> None:
    """Raise CladaError where the two disagree on a prompt, which both read densely."""
    expected = dense_logits(model, prompt)[-1]
    given = session.prefill([prompt]).logits[0]
    tolerance = _TOLERANCE if session.manifest.quantization is None else _QUANTIZED_TOLERANCE
    if not np.abs(given - expected).max() <= tolerance * np.ptp(expected):
        raise CladaError(f"the artifact was not made from {source}: they differ on a prompt, which both read densely")


def evaluate_artifact(
    artifact: Path,
    source: str,
    data: Path,
    settings: EvaluationSettings | None = None,
    *,
    threads: int = 0,
    bytes: float | None = None,
    **reading: Any,
) -> Evaluation:
    """Evaluate an artifact, in the runtime, against the checkpoint that it was made from, in PyTorch.

    Args:
        artifact: Its ONNX file.
        source: The checkpoint's folder, its GGUF file or a Hugging Face model id.
        data: A text file, or a JSONL of `{"text": ...}`, that was neither trained nor calibrated on.
        settings: Amount of text to evaluate.
        threads: Number of threads of ONNX Runtime; 0 lets it choose.
        bytes: The share of the weights' bytes that a token is to read, see Session.
        reading: Options of `load_model`.

    Returns:
        The evaluation; for quantized weights with two parts: the dense model with them, and the artifact's sparsity
        with the checkpoint's own weights, in PyTorch.

    Raises:
        CladaError: Anything given cannot be used, or the artifact is not of the checkpoint.

    Example:
        >>> evaluation = evaluate_artifact(Path("out/model.onnx"), "models/demo", Path("heldout.jsonl"))
        >>> evaluation.metrics["kl"].value
    """
    session = Session(artifact, threads=threads, bytes=bytes)
    model, tokenizer = load_model(source, torch.float32, **reading)
    _check_same_model(session, model, tokenizer, source)
    suite = prepare(model, tokenizer, data, settings or EvaluationSettings())
    prompt = suite.rows[0][: suite.settings.prompt_tokens]
    name = policy_name(session.manifest, bytes)
    if session.manifest.quantization is None:
        _check_same_weights(session, model, prompt, source)
        return _named(evaluate(SessionSubject(session, name), suite), source)
    quantized = _with_weights_of(session.artifact, source, **reading)
    _check_same_weights(session, quantized, prompt, source)
    # Of the parts the tasks are left out, which take most of the time.
    text = replace(suite, tasks=[])
    subject = SessionSubject(session, with_weights(name, plain(session.manifest.quantization)))
    parts = [evaluate(_dense(quantized, subject.info), text)]
    del quantized  # one model more than the dense one at a time
    own_weights = load_model(source, torch.float32, **reading)[0]
    parts.append(evaluate(_sparse(TorchSession(artifact, own_weights, bytes), name), text))
    return _named(replace(evaluate(subject, suite), parts=parts), source)


def _named(evaluation: Evaluation, source: str) -> Evaluation:
    """Put the checkpoint's name, its folder's or its id, into the description of it and of its parts."""
    folder = Path(source)
    subject = replace(evaluation.subject, model=folder.resolve().name if folder.is_dir() else source)
    return replace(evaluation, subject=subject, parts=[_named(part, source) for part in evaluation.parts])


def _with_weights_of(artifact: Artifact, source: str, **reading: Any) -> Any:
    """Model of a checkpoint in PyTorch, patched and dense, computing with an artifact's quantized weights."""
    model, _ = load_model(source, torch.float32, **reading)
    make_sparse(model, artifact)
    return model


def _dense(model: Any, info: SubjectInfo) -> DenseSubject:
    name = with_weights("dense", info.quantization)
    return DenseSubject(model, replace(info, name=name, policy={"name": "dense"}, calibration={}))


def _sparse(session: TorchSession, name: str) -> SessionSubject:
    """Subject with an artifact's sparsity and the weights of its checkpoint."""
    subject = SessionSubject(session, name)
    subject.info = replace(subject.info, quantization=None, ffn_bytes=weight_bytes(session.manifest, None))
    return subject
