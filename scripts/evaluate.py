"""Evaluates policies at equal cost, and the gain of each part of clada: every figure of docs/small-models.md.

Exports each model by each policy at each cost, decodes held-out text with it, and writes one JSON a run under
benchmarks/results. What is there already is not done again, so an interrupted run goes on where it stopped; the same
seed gives the same figures.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clada.contract.files import write
from clada.contract.manifest import Policy
from clada.errors import UnreachableError
from clada.evaluation.baselines import RULES, baseline
from clada.evaluation.evaluate import evaluate
from clada.evaluation.regression import regress, write_regression
from clada.evaluation.result import result_json, token_table
from clada.evaluation.session_subject import SessionSubject
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.shuffled import ShuffledLoad
from clada.evaluation.suite import Suite, prepare
from clada.evaluation.token_table import read_token_table
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.policies import PARTS, POLICIES, without
from clada.exporter.calibration.text import read_texts, sample_file, token_rows
from clada.exporter.export import ExportConfig, export
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from clada.runtime import Session

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REGRESSIONS = ROOT / "benchmarks" / "regression"
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
MODELS = ("demo", "demo-opt")
COSTS = (0.5, 0.4, 0.6)
# Where parts are removed and tasks are asked.
MAIN_COST = 0.5
SETTINGS = EvaluationSettings(sequences=96, prompt_tokens=64, decode_tokens=128, generation_tokens=32, seed=0)


@dataclass(frozen=True)
class Run:
    """Artifact to evaluate: its name, its policy, and the share of the FFN's bytes that it may read."""

    name: str
    policy: Policy
    cost: float

    @property
    def file(self) -> str:
        """Name of its result."""
        return f"{self.name.replace(' ', '-')}-{self.cost:.2f}.json"


def runs() -> Iterator[Run]:
    """List all runs, the most informative first."""
    for cost in COSTS:
        for name in ("clada", "cats", "griffin"):
            yield Run(name, POLICIES[name], cost)
    yield Run("sats", POLICIES["sats"], MAIN_COST)
    for part in PARTS:
        yield Run(f"without {part}", without(POLICIES["clada"], part), MAIN_COST)


def evaluate_run(run: Run, model: str, suite: Suite, artifacts: Path, results: Path, tokens: int) -> None:
    """Export, evaluate and write one run."""
    onnx = artifacts / model / Path(run.file).stem / "model.onnx"
    if not onnx.exists():
        calibration = CalibrationConfig(ffn_cost=run.cost, policy=run.policy, name=run.name)
        config = ExportConfig(calibration=calibration, calibration_tokens=tokens)
        export(onnx, str(ROOT / "models" / model), config, lambda _: None)
    tasks = suite.tasks if run.cost == MAIN_COST and run.name in POLICIES else []
    subjects = [(SessionSubject(Session(onnx, threads=1), run.name), results / model / run.file)]
    if run.name == "without anticipation":
        shuffled = dataclasses.replace(run, name="shuffled load")
        subjects.append((ShuffledLoad(Session(onnx, threads=1), shuffled.name), results / model / shuffled.file))
    (results / model).mkdir(parents=True, exist_ok=True)
    for subject, path in subjects:
        evaluation = evaluate(subject, dataclasses.replace(suite, tasks=tasks))
        if run.name == "clada" and run.cost == MAIN_COST:
            tokens_path = artifacts / model / "tokens.npz"
            write(tokens_path, token_table(evaluation))
            write_regression(REGRESSIONS / f"{model}.json", regress(read_token_table(tokens_path)))
        write(path, result_json(evaluation))
        figures = {name: evaluation.metrics[name].value for name in ("read_fraction", "kl", "disagreement")}
        print(f"{model}, {subject.info.name}: {', '.join(f'{n} {v:.4f}' for n, v in figures.items())}", flush=True)


def evaluate_baselines(model: str, suite: Suite, tokenizer: Any, results: Path, tokens: int) -> None:
    """Evaluate the published rules that the ops do not support, in PyTorch."""
    for cost, name in itertools.product(COSTS, RULES):
        path = results / model / f"{name}-{cost:.2f}.json"
        if path.exists():
            continue
        patched, _ = load_model(str(ROOT / "models" / model), torch.float32)
        sparsify(patched)
        rows = token_rows(
            read_texts(sample_file()), tokenizer, vocabulary=patched.config.vocab_size, tokens=tokens, length=256
        )
        try:
            subject = baseline(name, patched, rows, cost)
        except UnreachableError as error:
            print(f"left out: {error}", flush=True)
            continue
        tasks = suite.tasks if cost == MAIN_COST else []
        evaluation = evaluate(subject, dataclasses.replace(suite, tasks=tasks))
        write(path, result_json(evaluation))
        print(f"{model}, {name}: kl {evaluation.metrics['kl'].value:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "out" / "evaluation", help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--calibration-tokens", type=int, default=6144, help="default: %(default)s")
    args = parser.parse_args()

    for name in args.models:
        pending = [run for run in runs() if not (args.results / name / run.file).exists()]
        model, tokenizer = load_model(str(ROOT / "models" / name), torch.float32)
        suite = prepare(model, tokenizer, HELDOUT, SETTINGS)
        for number, run in enumerate(pending, start=1):
            print(f"{name}: {number} of {len(pending)}, {run.name} at {run.cost:.0%}", flush=True)
            try:
                evaluate_run(run, name, suite, args.artifacts, args.results, args.calibration_tokens)
            except UnreachableError as error:  # CATS reads the whole inward matrix, half of a network without a gate
                print(f"left out: {error}", flush=True)
        evaluate_baselines(name, suite, tokenizer, args.results, args.calibration_tokens)


if __name__ == "__main__":
    main()
