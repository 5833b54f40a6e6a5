"""Compares rules for skipping inputs, at equal bytes of a whole model, on text held out.

They differ in which products may be sparse, and in what an input is weighed by. Prints a table, and writes it as JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from clada.evaluation.input_rules import PARTS, Outcome, Part, Rule, Weighing, compare, make_rule, weigh
from clada.evaluation.statistics import bootstrap, mean_with_interval, relative_difference
from clada.exporter.calibration_text import digest, read_texts, sample_file, token_rows
from clada.exporter.checkpoint import load_model
from clada.exporter.output import check_writable, write
from clada.exporter.products import find_products
from clada.plugins.command_line import exit_code
from clada.plugins.errors import CladaError, UnreachableError

ROOT = Path(__file__).resolve().parent.parent
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
# What is compared with the first, which has one price for all that a token reads.
RULES: tuple[tuple[Weighing, tuple[Part, ...]], ...] = (
    ("price", PARTS),
    ("price", ("ffn", "attention")),
    ("price", ("ffn",)),
    ("wina", PARTS),
    ("wina", ("ffn", "attention")),
    ("teal", ("ffn", "attention")),
)


def _line(rule: Rule, outcome: Outcome, first: Outcome) -> str:
    parts = " ".join(f"{part} {share:.0%}" for part, share in outcome.read_of_parts.items())
    against = bootstrap(relative_difference, [outcome.divergence, first.divergence])
    times = "" if against is None or outcome is first else f"  {1 + against.value:.1f} times the first's KL"
    cost, changed = mean_with_interval(outcome.divergence, ".4f"), mean_with_interval(outcome.changed, ".1%")
    return f"{rule.name:32} reads {outcome.read.mean():.1%} ({parts})  KL {cost}  changed {changed}{times}"


@contextmanager
def reported() -> Iterator[None]:
    """Print, and go on from, what cannot be reached."""
    try:
        yield
    except UnreachableError as error:
        print(error)


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    for share in args.bytes:
        if not 0 < share < 1:
            raise CladaError(f"a share of bytes is {share}; it must lie between 0 and 1, exclusive")
    if args.json is not None:
        check_writable(args.json)
    model, tokenizer = load_model(args.model, torch.float32)
    vocabulary, length = model.config.vocab_size, args.prompt_tokens + args.decode_tokens

    def rows(path: Path, tokens: int) -> torch.Tensor:
        texts = read_texts(path, tokenizer=tokenizer)
        return token_rows(texts, tokenizer, vocabulary=vocabulary, tokens=tokens, length=length, seed=args.seed)

    calibration, heldout = rows(args.calibration_data, args.calibration_tokens), rows(args.data, args.tokens)
    products = find_products(model)
    print(
        f"{len(products)} products, {sum(p.weights for p in products):,} weights; calibrated on "
        f"{calibration.numel():,} tokens, measured on {heldout.shape[0] * args.decode_tokens:,} after prompts of "
        f"{args.prompt_tokens}",
        flush=True,
    )
    weighings: list[Weighing] = sorted({weighing for weighing, _ in RULES})
    worths = weigh(model, products, weighings, calibration, args.prompt_tokens)
    tables = []
    for share in args.bytes:
        print(f"\n{share:.0%} of all weights asked for")
        rules = []
        for weighing, parts in RULES:
            with reported():
                rules.append(make_rule(model, weighing, worths[weighing], parts, share))
        outcomes = compare(model, products, rules, heldout, args.prompt_tokens)
        print("\n".join(_line(rule, outcome, outcomes[0]) for rule, outcome in zip(rules, outcomes, strict=True)))
        sys.stdout.flush()
        tables += [
            {"asked": share, "rule": rule.name, "calibration share": rule.share, "read of parts": outcome.read_of_parts}
            | {name: np.asarray(getattr(outcome, name)).tolist() for name in ("divergence", "changed", "read")}
            for rule, outcome in zip(rules, outcomes, strict=True)
        ]
    if args.json is not None:
        about = {name: value for name, value in vars(args).items() if name not in ("json", "model")}
        about |= {"model": Path(args.model).name, "calibration_data": digest(args.calibration_data)}
        write(
            args.json, (json.dumps({"settings": about | {"data": digest(args.data)}, "rules": tables}) + "\n").encode()
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a checkpoint, or its name on the Hugging Face hub")
    parser.add_argument("--bytes", nargs="+", type=float, default=[0.68, 0.55], metavar="SHARE")
    parser.add_argument("--calibration-data", type=Path, default=sample_file(), metavar="FILE")
    parser.add_argument("--calibration-tokens", type=int, default=2048)
    parser.add_argument("--data", type=Path, default=HELDOUT, metavar="FILE", help="text to measure on")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--decode-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: run(parser.parse_args())))


if __name__ == "__main__":
    main()
