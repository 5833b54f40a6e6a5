"""Evaluation of one subject: read every row, answer the tasks, follow the dense model's continuations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from clada.evaluation.metrics import metrics
from clada.evaluation.reference import dense_logits
from clada.evaluation.scores import TokenScores, token_scores
from clada.evaluation.statistics import Estimate
from clada.evaluation.subject import Floats, Reading, Subject, SubjectInfo, check_reading
from clada.evaluation.suite import Suite, Task
from clada.evaluation.tasks import is_right


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Args:
        subject: Description of the subject.
        suite: Suite of the evaluation.
        readings: Readings of each row; without logits, f32[T, 0].
        scores: Scores of each row.
        sequences: Columns f64[S], means over each row by name; NaN where a row has none to count.
        metrics: Over all rows, by name; those that are not defined here are left out.
        parts: Of what the subject combines, each part by itself.
    """

    subject: SubjectInfo
    suite: Suite
    readings: list[Reading]
    scores: list[TokenScores]
    sequences: dict[str, Floats]
    metrics: dict[str, Estimate]
    parts: Sequence["Evaluation"] = ()


def _without_logits(reading: Reading) -> Reading:
    return Reading(**{**vars(reading), "logits": reading.logits[:, :0]})


def _matching(subject: Subject, suite: Suite, index: int) -> int:
    """Number of leading tokens that the subject would generate as the dense model does, after those both prompts give.

    As long as it does it reads the dense model's tokens anyhow, so reading them tells where it first would not.
    """
    settings, continuation = suite.settings, suite.continuations[index]
    prompt = suite.rows[index][: settings.prompt_tokens]
    reading = subject.read([*prompt, *continuation], settings.prompt_tokens)
    check_reading(reading, settings.generation_tokens, subject.info)
    same = reading.logits.argmax(axis=-1) == continuation[1:]
    return int(np.cumprod(same).sum())


def _means_by_row(task: Task, right: list[bool], rows: int) -> Floats:
    """Share of right answers of each row, f64[S]; NaN where it has no question."""
    of = [[answer for item, answer in zip(task.items, right, strict=True) if item.row == row] for row in range(rows)]
    return np.array([np.mean(answers) if answers else np.nan for answers in of])


def evaluate(subject: Subject, suite: Suite) -> Evaluation:
    """Evaluate a subject.

    Args:
        subject: Subject that reads the rows.
        suite: From `prepare`.

    Raises:
        CladaError: The subject's output is not finite or not of the tokens it read, or a row is too long for it.
    """
    settings, rows = suite.settings, suite.rows
    settings.check_context(subject.info.context_length)
    readings: list[Reading] = []
    scores: list[TokenScores] = []
    steps = 2 * len(rows) + sum(len(task.items) for task in suite.tasks)
    with tqdm(total=steps, desc=subject.info.name, leave=False, disable=None) as bar:
        for row in rows:
            reading = subject.read(row, settings.prompt_tokens)
            check_reading(reading, settings.decode_tokens, subject.info)
            dense = dense_logits(suite.model, row)[settings.prompt_tokens : -1]
            scores.append(token_scores(reading.logits, dense, row[settings.prompt_tokens + 1 :]))
            readings.append(_without_logits(reading))
            bar.update()
        answers: dict[str, list[bool]] = {}
        for task in suite.tasks:
            answers[task.name] = []
            for item in task.items:
                answers[task.name].append(is_right(subject, item))
                bar.update()
        matching: list[int] = []
        for index in range(len(rows)):
            matching.append(_matching(subject, suite, index))
            bar.update()

    neurons = sum(subject.info.neurons)
    sequences = {
        "nll": np.array([s.nll.mean() for s in scores]),
        "dense_nll": np.array([s.dense_nll.mean() for s in scores]),
        "kl": np.array([s.kl.mean() for s in scores]),
        "disagreement": np.array([1 - s.agrees.mean() for s in scores]),
        "correct": np.array([s.correct.mean() for s in scores]),
        "dense_correct": np.array([s.dense_correct.mean() for s in scores]),
        "read_fraction": np.array([r.read_fraction.mean(dtype=np.float64) for r in readings]),
        "sparsity": np.array([1 - r.active.sum() / (len(r.active) * neurons) for r in readings]),
        "exact_match": np.array(matching, np.float64),
    }
    for task in suite.tasks:
        sequences[task.name] = _means_by_row(task, answers[task.name], len(rows))
        sequences[f"dense_{task.name}"] = _means_by_row(task, task.dense_right, len(rows))
    return Evaluation(
        subject.info, suite, readings, scores, sequences, metrics(sequences, subject.info.ffn_bytes, settings.seed)
    )
