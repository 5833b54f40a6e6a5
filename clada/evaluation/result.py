"""Files of an evaluation: its result as JSON, and a table of every token."""

import io
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from clada.errors import CladaError
from clada.evaluation.evaluate import Evaluation
from clada.evaluation.subject import Floats

FORMAT = 1
_TOOLS = ("clada", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


def _column(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def result_of(evaluation: Evaluation) -> dict[str, Any]:
    """Result of an evaluation as a JSON object."""
    info, suite = evaluation.subject, evaluation.suite
    active = np.concatenate([reading.active for reading in evaluation.readings]).mean(axis=0)
    pool = np.concatenate([reading.pool for reading in evaluation.readings]).mean(axis=0)
    return {
        "format": FORMAT,
        "subject": {
            "name": info.name,
            "model": info.model,
            "policy": info.policy,
            "family": info.family,
            "layers": len(info.neurons),
            "neurons": list(info.neurons),
            "parameters": info.parameters,
            "calibration": info.calibration,
            "quantization": info.quantization,
        },
        "data": {
            "name": suite.data_name,
            "sha256": suite.data_sha256,
            "sequences": len(suite.rows),
            "prompt_tokens": suite.settings.prompt_tokens,
            "scored_tokens": len(suite.rows) * suite.settings.decode_tokens,
            "generation_tokens": suite.settings.generation_tokens,
            "seed": suite.settings.seed,
        },
        "metrics": {name: asdict(estimate) for name, estimate in evaluation.metrics.items()},
        "layers": [
            {"sparsity": 1 - kept / neurons, "pool": allowed / neurons}
            for kept, allowed, neurons in zip(active.tolist(), pool.tolist(), info.neurons, strict=True)
        ],
        "sequences": {name: _column(column) for name, column in evaluation.sequences.items()},
        "tools": {name: version(name) for name in _TOOLS},
        "parts": [result_of(part) for part in evaluation.parts],
    }


def result_json(evaluation: Evaluation) -> bytes:
    """Serialize the result as JSON."""
    return (json.dumps(result_of(evaluation), indent=2, allow_nan=False) + "\n").encode()


def token_table(evaluation: Evaluation) -> bytes:
    """Serialize the table of tokens as .npz: a column for each figure of every token that was read, as plain arrays."""
    suite, readings, scores = evaluation.suite, evaluation.readings, evaluation.scores
    prompt, tokens = suite.settings.prompt_tokens, suite.settings.decode_tokens
    rows = np.array(suite.rows, np.int32)
    columns: dict[str, Any] = {
        "sequence": np.repeat(np.arange(len(rows), dtype=np.int32), tokens),
        "position": np.tile(np.arange(prompt, prompt + tokens, dtype=np.int32), len(rows)),
        "token": rows[:, prompt:-1].ravel(),
        "kl": np.concatenate([s.kl for s in scores]).astype(np.float32),
        "agrees": np.concatenate([s.agrees for s in scores]),
        "neurons": np.array(evaluation.subject.neurons, np.int32),
    }
    for name in ("surprisal", "entropy", "load", "active", "pool"):
        columns[name] = np.concatenate([getattr(reading, name) for reading in readings])
    content = io.BytesIO()
    np.savez_compressed(content, **columns)
    return content.getvalue()


def read_result(path: Path) -> dict[str, Any]:
    """Read the JSON of an evaluation.

    Raises:
        CladaError: The file is missing, or not one of this format.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CladaError(f"cannot read the result {path}: {error.strerror}") from error
    except ValueError as error:
        raise CladaError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT or "sequences" not in result:
        raise CladaError(f"{path} is not a result of `clada eval`, format {FORMAT}")
    return result
