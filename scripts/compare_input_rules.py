"""Compares rules for skipping inputs or neurons, at equal bytes of a whole model, on text held out.

They differ in what may be sparse, and in what an input or neuron is weighed by. Prints a table, and writes it as JSON;
input_rules_table.py makes tables for a page from that.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.command_line import exit_code
from clada.contract.files import check_writable, write
from clada.errors import CladaError, UnreachableError
from clada.evaluation.input_rules import (
    BLOCK,
    PARTS,
    Outcome,
    Part,
    Rule,
    Weighing,
    compare,
    dense_rule,
    make_rule,
    part_weights,
    weigh,
)
from clada.evaluation.neuron_rules import NEURON_RULES, decode_neurons
from clada.evaluation.statistics import bootstrap, exp_mean, mean, mean_with_interval, ratio
from clada.evaluation.teal_search import Descent, search
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.price import Worth
from clada.exporter.calibration.text import digest, read_texts, sample_file, token_rows
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from clada.exporter.model.products import Product, find_products

ROOT = Path(__file__).resolve().parent.parent
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
# What is compared with the first, which has one price for all that a token reads; and whether TEAL's search is made.
RULES: tuple[tuple[Weighing, tuple[Part, ...], bool], ...] = (
    ("price", PARTS, False),
    ("price", BLOCK, False),
    ("price", ("ffn",), False),
    ("wina", PARTS, False),
    ("wina", BLOCK, False),
    ("teal", PARTS, False),
    ("teal", BLOCK, False),
    ("teal", BLOCK, True),
)
COLUMNS = ("divergence", "changed", "read", "nll", "accuracy")


def _figures(outcome: Outcome) -> str:
    perplexity = bootstrap(exp_mean, [outcome.nll])
    assert perplexity is not None
    return (
        f"KL {mean_with_interval(outcome.divergence, '.4f')}  changed {mean_with_interval(outcome.changed, '.1%')}  "
        f"perplexity {perplexity.value:.3f}  accuracy {float(mean(outcome.accuracy)):.1%}"
    )


def _line(name: str, outcome: Outcome, first: Outcome) -> str:
    parts = " ".join(f"{part} {share:.0%}" for part, share in outcome.read_of_parts.items())
    against = bootstrap(ratio, [outcome.divergence, first.divergence])
    times = (
        ""
        if against is None or outcome is first
        else f"  {against.value:.2f} ({against.low:.2f} - {against.high:.2f}) times the first's KL"
    )
    return f"{name:32} reads {outcome.read.mean():.1%} ({parts})  {_figures(outcome)}{times}"


@contextmanager
def reported() -> Iterator[None]:
    """Print a goal that cannot be reached, and go on."""
    try:
        yield
    except UnreachableError as error:
        print(error)


def teal_paths(args: argparse.Namespace, model: Any, worths: Sequence[Worth], rows: Tensor) -> list[Descent]:
    """Run TEAL's search, down to the least share of a block that is requested."""
    weights = part_weights(model, [worth.product for worth in worths])
    block = weights["ffn"] + weights["attention"]
    least = max(min(args.bytes) * (block + weights["output"]) - weights["output"], 0) / block
    rows = rows[: max(1, args.search_tokens // rows.shape[1])]
    start = time.monotonic()
    paths = search(model, worths, rows, args.prompt_tokens, least, args.search_step)
    print(
        f"TEAL's search took {time.monotonic() - start:.0f} s for {len(paths)} blocks, {rows.numel()} tokens",
        flush=True,
    )
    return paths


def input_rules(
    args: argparse.Namespace, model: Any, products: Sequence[Product], rows: Tensor
) -> list[tuple[float, Rule]]:
    """Rules for inputs, calibrated on rows, by share of all weights; without those that cannot read so little."""
    weighings: list[Weighing] = sorted({weighing for weighing, _, _ in RULES})
    worths = weigh(model, products, weighings, rows, args.prompt_tokens)
    paths = teal_paths(args, model, worths["teal"], rows)
    found = []
    for share in args.bytes:
        for weighing, parts, searched in RULES:
            with reported():
                rule = make_rule(model, weighing, worths[weighing], parts, share, paths if searched else ())
                found.append((share, rule))
    return found


def neuron_outcomes(
    args: argparse.Namespace, model: Any, weights: dict[Part, int], calibration: Tensor, heldout: Tensor
) -> list[tuple[float, str, Outcome]]:
    """Results of the rules for neurons, by share and name; the model is patched, and stays so."""
    sparsify(model)
    texts = [
        Texts(model, rows, args.prompt_tokens)
        for rows in (calibration[: max(1, args.neuron_tokens // calibration.shape[1])], heldout)
    ]
    found: list[tuple[float, str, Outcome]] = []
    for share in args.bytes:
        for name in NEURON_RULES:
            with reported():
                found.append((share, name, decode_neurons(name, weights, share, *texts)))
    return found


def as_json(share: float, name: str, outcome: Outcome) -> dict[str, Any]:
    """Convert an outcome to JSON."""
    columns = {column: np.asarray(getattr(outcome, column)).round(6).tolist() for column in COLUMNS}
    return {"asked": share, "rule": name, "read of parts": outcome.read_of_parts} | columns


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    for share in args.bytes:
        if not 0 < share < 1:
            raise CladaError(f"a share of bytes is {share}; it must lie between 0 and 1, exclusive")
    if args.json is not None:
        check_writable(args.json)
    model, tokenizer = load_model(args.model, torch.float32)
    vocabulary, length = model.config.vocab_size, args.prompt_tokens + args.decode_tokens

    def rows_of(path: Path, tokens: int) -> Tensor:
        texts = read_texts(path, tokenizer=tokenizer)
        return token_rows(texts, tokenizer, vocabulary=vocabulary, tokens=tokens, length=length, seed=args.seed)

    calibration, heldout = rows_of(args.calibration_data, args.calibration_tokens), rows_of(args.data, args.tokens)
    products = find_products(model)
    weights = part_weights(model, products)
    print(
        f"{len(products)} products, {sum(weights.values()):,} weights; calibrated on "
        f"{calibration.numel():,} tokens, measured on {heldout.shape[0] * args.decode_tokens:,} after prompts of "
        f"{args.prompt_tokens}",
        flush=True,
    )
    rules = input_rules(args, model, products, calibration)
    dense, *outcomes = compare(
        model, products, [dense_rule(products), *(rule for _, rule in rules)], heldout, args.prompt_tokens
    )
    found = [(share, rule.name, outcome) for (share, rule), outcome in zip(rules, outcomes, strict=True)]
    found += neuron_outcomes(args, model, weights, calibration, heldout)
    print(f"dense: {_figures(dense)}")
    for share in args.bytes:
        print(f"\n{share:.0%} of all weights asked for")
        of_share = [(name, outcome) for asked, name, outcome in found if asked == share]
        print("\n".join(_line(name, outcome, of_share[0][1]) for name, outcome in of_share))
    if args.json is not None:
        about = {name: value for name, value in vars(args).items() if name not in ("json", "model")}
        about |= {"model": Path(args.model).name, "calibration_data": digest(args.calibration_data)}
        about |= {"data": digest(args.data), "weights": weights}
        lines = {"settings": about, "dense": as_json(1.0, "dense", dense), "rules": [as_json(*one) for one in found]}
        write(args.json, (json.dumps(lines) + "\n").encode())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a checkpoint, or its name on the Hugging Face hub")
    parser.add_argument("--bytes", nargs="+", type=float, default=[0.7, 0.6, 0.5], metavar="SHARE")
    parser.add_argument("--calibration-data", type=Path, default=sample_file(), metavar="FILE")
    parser.add_argument("--calibration-tokens", type=int, default=2048)
    parser.add_argument("--search-tokens", type=int, default=256, help="calibration tokens that TEAL's search reads")
    parser.add_argument("--search-step", type=float, default=0.02, help="share of a block that a step of it takes")
    parser.add_argument("--neuron-tokens", type=int, default=1024, help="those by which rules for neurons are set")
    parser.add_argument("--data", type=Path, default=HELDOUT, metavar="FILE", help="text to measure on")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--decode-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: run(parser.parse_args())))


if __name__ == "__main__":
    main()
