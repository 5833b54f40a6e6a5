"""What the load is worth where inputs are skipped, at equal bytes, on text held out.

Decodes with thresholds that stay, that follow the load, and that follow the load of other tokens, each at a few
efforts; what each costs at equal bytes lies between them. Prints a table, and writes it as JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clada.evaluation.statistics import bootstrap, mean_with_interval, relative_difference
from clada.exporter.calibration_text import digest, read_texts, token_rows
from clada.exporter.checkpoint import load_model
from clada.exporter.decode_pass import Decoded
from clada.exporter.input_pass import Run, decode_each
from clada.exporter.load_fit import load_by, scale_by
from clada.exporter.output import check_writable, write
from clada.exporter.price_calibration import choose
from clada.exporter.price_file import read_price_calibration
from clada.exporter.products import find_products
from clada.exporter.scale_map import Floats
from clada.plugins.command_line import exit_code

ROOT = Path(__file__).resolve().parent.parent
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
EFFORTS = (0.85, 1.0, 1.18)


def at_equal_bytes(runs: list[Decoded], wanted: Floats) -> tuple[Floats, Floats]:
    """KL and share of changed tokens f64[N] of each text where it reads as much as wanted, between what was tried."""
    reads, costs, changes = (
        np.stack([values.double().mean(1).numpy() for values in of_runs])
        for of_runs in zip(*((run.read, run.divergence, ~run.agrees) for run in runs), strict=True)
    )
    # Means over texts say how a cost goes with what is read: each text is moved along that, not along its own noise.
    at = reads.mean(1)
    slope = np.polyfit(at, np.log(costs.mean(1)), 1)[0]
    middle = len(runs) // 2
    change = np.polyfit(at, changes.mean(1), 1)[0]
    missing = wanted - reads[middle]
    return costs[middle] * np.exp(slope * missing), changes[middle] + change * missing


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.json is not None:
        check_writable(args.json)
    model, tokenizer = load_model(args.model, torch.float32)
    products = find_products(model)
    calibration, _ = read_price_calibration(args.calibration, products)
    length = args.prompt_tokens + args.decode_tokens
    texts = read_texts(args.data, tokenizer=tokenizer)
    rows = token_rows(texts, tokenizer, vocabulary=model.config.vocab_size, tokens=args.tokens, length=length)
    tables = []
    for share in args.bytes:
        thresholds = choose(calibration, share).thresholds

        def decode(scale: torch.Tensor, thresholds: Any = thresholds) -> list[Decoded]:
            runs = [Run(thresholds, effort * scale) for effort in EFFORTS]
            return decode_each(model, products, runs, rows, args.prompt_tokens)

        flat = decode(torch.ones(len(rows), args.decode_tokens))
        load = load_by(calibration.load_map, flat[len(EFFORTS) // 2])
        others = np.random.default_rng(0).permutation(load.ravel()).reshape(load.shape)
        runs = {"flat": flat} | {
            name: decode(scale_by(calibration.load_map, values))
            for name, values in (("load", load), ("shuffled load", others))
        }
        wanted = flat[len(EFFORTS) // 2].read.double().mean(1).numpy()
        found = {name: at_equal_bytes(of_way, wanted) for name, of_way in runs.items()}
        # What a correction of the price to each text's own bytes would give.
        found["flat, text by text"] = at_equal_bytes(flat, np.full(len(rows), wanted.mean()))
        print(f"{share:.0%} of all weights asked for, {wanted.mean():.1%} read; {rows.shape[0]} texts")
        for name, (cost, changed) in found.items():
            against = bootstrap(relative_difference, [cost, found["flat"][0]])
            assert against is not None
            print(
                f"  {name:18} KL {mean_with_interval(cost, '.4f')}  changed {mean_with_interval(changed, '.1%')}  "
                f"{against.value:+.1%} ({against.low:+.1%} to {against.high:+.1%})",
                flush=True,
            )
            tables.append({"asked": share, "way": name, "divergence": cost.tolist(), "changed": changed.tolist()})
    if args.json is not None:
        about = {name: value for name, value in vars(args).items() if name not in ("json", "model", "calibration")}
        about |= {"model": Path(args.model).name, "data": digest(args.data), "efforts": EFFORTS}
        write(args.json, (json.dumps({"settings": about, "ways": tables}) + "\n").encode())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a checkpoint, or its name on the Hugging Face hub")
    parser.add_argument("calibration", type=Path, help="what clada calibrate wrote of it")
    parser.add_argument("--bytes", nargs="+", type=float, default=[0.68, 0.55], metavar="SHARE")
    parser.add_argument("--data", type=Path, default=HELDOUT, metavar="FILE", help="text to measure on")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--decode-tokens", type=int, default=192)
    parser.add_argument("--json", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: run(parser.parse_args())))


if __name__ == "__main__":
    main()
