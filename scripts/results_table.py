"""Prints the tables of docs/small-models.md from the results under benchmarks/, or writes them there."""

import argparse
import math
from pathlib import Path
from typing import Any

from clada.evaluation.paired import paired_difference
from clada.evaluation.result import read_result

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "small-models.md"
BEGIN, END = "<!-- made by scripts/results_table.py -->\n", "<!-- end -->\n"

MODELS = {"demo": "Llama, SwiGLU, 5.5 M", "demo-opt": "OPT, ReLU, 5.9 M"}
POLICIES = ("clada", "sats", "cats", "griffin", "tt", "teal", "wina")
COSTS = ("0.60", "0.50", "0.40")
MAIN_COST = "0.50"
PARTS = {
    "without-pool": "the pool (all neurons may be used)",
    "without-prompt": "the prompt's say in the pool (calibration text alone)",
    "without-allocation": "sharing among the layers (all alike)",
    "without-compensation": "compensation of the mean of what is dropped",
    "without-load": "load altogether (no map, reanalysis or anticipation)",
    "without-anticipation": "anticipation (the paper's load)",
    "without-reanalysis": "reanalysis",
    "shuffled-load": "anticipation, and the load is another token's",
    "sats": "load, for a table by token id",
}


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}"


def _row(metrics: dict[str, Any]) -> list[str]:
    def value(name: str) -> float | None:
        return metrics[name]["value"] if name in metrics else None

    ratio, accuracy, choice, cloze = map(
        value, ("perplexity_ratio", "accuracy_ratio", "choice_accuracy_ratio", "cloze_accuracy_ratio")
    )
    cells = [
        _percent(metrics["read_fraction"]["value"]),
        f"{1000 * metrics['kl']['value']:.2f} ± {500 * (metrics['kl']['high'] - metrics['kl']['low']):.2f}",
        _percent(metrics["disagreement"]["value"]),
    ]
    return cells + ["" if r is None else f"{r - 1:+.1%}" for r in (ratio, accuracy, choice, cloze)]


def quality_table(results: Path) -> list[str]:
    """Table of every policy at every cost, model by model."""
    lines = [
        "| model | policy | FFN bytes read | KL, 10⁻³ nats | next token differs | perplexity | accuracy "
        "| multiple choice | cloze |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for folder, model in MODELS.items():
        for cost in COSTS:
            for policy in POLICIES:
                path = results / folder / f"{policy}-{cost}.json"
                if path.exists():
                    lines.append(f"| {model} | {policy} | {' | '.join(_row(read_result(path)['metrics']))} |")
    return lines


def _slope(folder: Path) -> float:
    """Decrease of clada's log KL with the share of bytes read below the main cost: above it none may be left."""
    ends = [read_result(folder / f"clada-{cost}.json")["metrics"] for cost in (MAIN_COST, COSTS[-1])]
    return math.log(ends[1]["kl"]["value"] / ends[0]["kl"]["value"]) / (
        ends[0]["read_fraction"]["value"] - ends[1]["read_fraction"]["value"]
    )


def parts_table(results: Path) -> list[str]:
    """Table of clada's loss without each of its parts, at the main cost.

    Held-out text makes policies read a little more or less than calibration text did, so KL is moved along clada's own
    curve to the bytes that clada read.
    """
    # The slope of a model's curve is needed: those that were evaluated at every cost.
    done = {f: all((results / f / f"clada-{cost}.json").exists() for cost in COSTS) for f in MODELS}
    models = {folder: label for folder, label in MODELS.items() if done[folder]}
    lines = [f"| without | {' | '.join(models.values())} |", f"|---|{'---|' * len(models)}"]
    for name, label in PARTS.items():
        cells = []
        for folder in models:
            path = results / folder / f"{name}-{MAIN_COST}.json"
            if not path.exists():
                cells.append("")
                continue
            clada = results / folder / f"clada-{MAIN_COST}.json"
            change = paired_difference(path, clada, "kl").relative
            assert change is not None
            read = [read_result(file)["metrics"]["read_fraction"]["value"] for file in (path, clada)]
            factor = math.exp(_slope(results / folder) * (read[0] - read[1]))
            value, low, high = ((1 + change_) * factor - 1 for change_ in (change.value, change.low, change.high))
            # From ten times on a percentage says less than the factor.
            as_text = "{:+.1%}" if value < 9 else "x{:,.0f}"
            shown = [as_text.format(change_ + (value >= 9)) for change_ in (value, low, high)]
            cells.append(f"{shown[0]} ({shown[1]} to {shown[2]})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def block(results: Path) -> str:
    """Text between the marks in the page."""
    return "\n".join(
        [
            *quality_table(results),
            "",
            f"How KL changes where one part is taken out, at {float(MAIN_COST):.0%} of the bytes; in parentheses 95%",
            "of paired resamples over sequences. Where held-out text made two policies read a little more or less, KL",
            "was moved along clada's own curve to the same bytes:",
            "",
            *parts_table(results),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put it into the page instead of printing it")
    args = parser.parse_args()
    made = block(args.results)
    if not args.write:
        print(made)
        return
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + made + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
