"""How far each contender's predictions are from those of the checkpoint in float32, on held-out text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clada.benchmark.llama_cpp import LlamaProcess
from clada.benchmark.opened_artifact import OpenedArtifact, has_dense
from clada.benchmark.settings import ArtifactSettings
from clada.benchmark.timing import progress_bar
from clada.errors import CladaError
from clada.evaluation.reference import dense_logits
from clada.evaluation.scores import token_scores
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.statistics import Estimate, bootstrap, mean
from clada.evaluation.subject import Floats
from clada.evaluation.suite import draw_rows
from clada.exporter.calibration.text import read_texts
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.rope import context_length
from clada.runtime import Session

# From a prompt that is read densely, and the tokens after it, to the logits f32[T, V] after each of those.
_Score = Callable[[Sequence[int], Sequence[int]], Floats]


@dataclass(frozen=True)
class Quality:
    """Divergence of one contender from the checkpoint.

    Args:
        name: The contender.
        kl: KL divergence of its predictions from the checkpoint's, in nats a token.
        disagreement: Share of tokens after which both do not find the same one likeliest.
    """

    name: str
    kl: Estimate
    disagreement: Estimate


@dataclass(frozen=True)
class Qualities:
    """Divergences of all contenders on the same text."""

    of: tuple[Quality, ...]


@dataclass(frozen=True)
class Text:
    """Rows of held-out text, and the checkpoint's predictions.

    Args:
        rows: Token ids; a prompt, the tokens that are read one by one, and one that is only predicted.
        prompt_tokens: Length of the prompt.
        dense: For each row f32[T, V].
    """

    rows: list[list[int]]
    prompt_tokens: int
    dense: list[Floats]

    @staticmethod
    def of(chosen: ArtifactSettings) -> "Text":
        """Draw rows, and have the checkpoint in PyTorch read them.

        Raises:
            CladaError: The checkpoint or the text cannot be used, or there is too little text.
        """
        assert chosen.reference is not None
        assert chosen.data is not None
        model, tokenizer = load_model(chosen.reference, torch.float32)
        room = context_length(model.config)
        prompt = min(chosen.prompt_tokens, room // 2)
        amount = EvaluationSettings(chosen.sequences, prompt, min(chosen.decode_tokens, room - prompt - 1))
        texts = read_texts(chosen.data, "evaluation data", tokenizer)
        rows = draw_rows(texts, tokenizer, model.config.vocab_size, amount)
        return Text(rows, prompt, [dense_logits(model, row)[prompt:-1] for row in rows])


def _score_ours(session: Session, prompt: Sequence[int], tokens: Sequence[int]) -> Floats:
    state = session.prefill([prompt])
    logits = []
    for token in tokens:
        session.decode(state, [token])
        logits.append(state.logits[0].astype(np.float32))
    return np.stack(logits)


def _scorers(artifacts: Sequence[OpenedArtifact], llamas: Sequence[LlamaProcess]) -> Iterator[tuple[str, _Score]]:
    for artifact in artifacts:
        if has_dense(artifact, artifacts):
            yield artifact.dense_name, partial(_score_ours, artifact.dense)
        for share, session in artifact.sessions.items():
            yield artifact.name(share), partial(_score_ours, session)
    for llama in llamas:
        yield llama.name, llama.score


def _estimate(name: str, column: list[float]) -> Estimate:
    found = bootstrap(mean, [np.array(column)])
    if found is None:
        raise CladaError(f"{name} gave logits that are not finite")
    return found


def quality(text: Text, artifacts: Sequence[OpenedArtifact], llamas: Sequence[LlamaProcess]) -> Qualities:
    """Have each contender read the text, prompts densely and then token by token, and compare its predictions."""
    found = []
    scorers = list(_scorers(artifacts, llamas))
    with progress_bar(len(scorers) * len(text.rows), "divergence") as advance:
        for name, score in scorers:
            kl, differs = [], []
            for row, dense in zip(text.rows, text.dense, strict=True):
                logits = score(row[: text.prompt_tokens], row[text.prompt_tokens : -1])
                scores = token_scores(logits, dense, row[text.prompt_tokens + 1 :])
                kl.append(float(scores.kl.mean()))
                differs.append(float(1 - scores.agrees.mean()))
                advance()
            found.append(Quality(name, _estimate(name, kl), _estimate(name, differs)))
    return Qualities(tuple(found))


def quality_lines(qualities: Qualities) -> list[str]:
    """Format divergences, one line each."""
    width = max(len(one.name) for one in qualities.of)
    header = f"{'contender':<{width}}  KL from the checkpoint in float32, nats a token  next token differs"
    return [
        header,
        *(
            f"{one.name:<{width}}  {one.kl.value:.5f} ({one.kl.low:.5f} - {one.kl.high:.5f})"
            f"  {one.disagreement.value:.1%} ({one.disagreement.low:.1%} - {one.disagreement.high:.1%})"
            for one in qualities.of
        ),
    ]
