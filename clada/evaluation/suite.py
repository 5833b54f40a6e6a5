"""Suite of an evaluation, prepared once: rows and tasks from a text, and the dense model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clada.errors import CladaError
from clada.evaluation.cloze import cloze_items
from clada.evaluation.reference import dense_continuation, dense_log_likelihoods
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.tasks import Item, choice_items
from clada.exporter.calibration.text import digest, read_texts, token_rows
from clada.exporter.model.rope import context_length

_DATA = "evaluation data"


@dataclass(frozen=True)
class Task:
    """Questions, and the answers of the dense model.

    Args:
        name: "choice" or "cloze".
        items: The questions.
        dense_right: Whether the dense model answered each as it is.
    """

    name: str
    items: list[Item]
    dense_right: list[bool]


@dataclass(frozen=True)
class Suite:
    """Rows, tasks and reference answers that subjects are evaluated on.

    Args:
        model: The dense model.
        settings: Amount of text.
        data_name: Name of the file that the text is from.
        data_sha256: Its hash.
        rows: Token ids, `settings.row_tokens` each.
        tasks: Made from those rows; without them an evaluation takes a third of the time.
        continuations: For each row, what the dense model generates after its prompt: its first token follows from the
            prompt alone, `settings.generation_tokens` more.
    """

    model: Any
    settings: EvaluationSettings
    data_name: str
    data_sha256: str
    rows: list[list[int]]
    tasks: list[Task]
    continuations: list[list[int]]


def draw_rows(texts: list[str], tokenizer: Any, vocabulary: int, settings: EvaluationSettings) -> list[list[int]]:
    """Draw rows of consecutive tokens.

    Raises:
        CladaError: The texts hold fewer than were asked for, or the tokenizer is another model's.
    """
    wanted = settings.sequences
    rows = token_rows(
        texts,
        tokenizer,
        vocabulary=vocabulary,
        tokens=wanted * settings.row_tokens,
        length=settings.row_tokens,
        seed=settings.seed,
        what=_DATA,
    )
    if len(rows) < wanted:
        raise CladaError(
            f"the {_DATA} has {len(rows)} sequences of {settings.row_tokens} tokens, {wanted} were asked for; "
            "ask for fewer or shorter ones, or give more text"
        )
    return rows[:wanted].tolist()


def _answered(model: Any, item: Item) -> bool:
    return int(np.argmax(dense_log_likelihoods(model, item.context, item.candidates))) == item.right


def prepare(model: Any, tokenizer: Any, data: Path, settings: EvaluationSettings) -> Suite:
    """Draw rows and tasks from a text, and have the dense model answer them.

    Args:
        model: A Hugging Face causal LM in float32.
        tokenizer: Its tokenizer.
        data: A text file, or a JSONL of `{"text": ...}`, that was neither trained nor calibrated on.
        settings: Amount of text.

    Raises:
        CladaError: The file cannot be used, holds too little text, or the rows do not fit the model's context.
    """
    settings.check_context(context_length(model.config))
    rows = draw_rows(read_texts(data, _DATA, tokenizer), tokenizer, model.config.vocab_size, settings)
    made: dict[str, list[Item]] = {
        "choice": choice_items(rows, settings.prompt_tokens, settings.seed),
        "cloze": cloze_items(rows, tokenizer, settings.prompt_tokens, settings.seed),
    }
    steps = len(rows) + sum(map(len, made.values()))
    with tqdm(total=steps, desc="dense model", leave=False, disable=None) as bar:

        def answers(items: Sequence[Item]) -> list[bool]:
            right = []
            for item in items:
                right.append(_answered(model, item))
                bar.update()
            return right

        tasks = [Task(name, items, answers(items)) for name, items in made.items()]
        continuations: list[list[int]] = []
        for row in rows:
            prompt = row[: settings.prompt_tokens]
            continuations.append(dense_continuation(model, prompt, settings.generation_tokens + 1))
            bar.update()
    return Suite(model, settings, data.name, digest(data), rows, tasks, continuations)
