"""Measures the gain of load and anticipation where inputs are skipped, at equal bytes, on text held out.

Decodes with thresholds that stay, at a few efforts, and with thresholds that follow the load, another token's load, a
table of tokens, or the load and what is anticipated; says what each costs beside thresholds that stay and read as many
bytes. Prints a table, and writes it as JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.command_line import exit_code
from clada.contract.files import check_writable, write
from clada.evaluation.statistics import bootstrap, mean_with_interval, relative_difference
from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.input_pass import Run, decode_each
from clada.exporter.calibration.load_fit import load_by, scale_by, to_float
from clada.exporter.calibration.price_calibration import PriceCalibration, choose
from clada.exporter.calibration.price_file import read_price_calibration
from clada.exporter.calibration.probe import fit_table, knots_of, log_divergence
from clada.exporter.calibration.scale_map import Floats, fit_scale_map
from clada.exporter.calibration.text import digest, read_texts, row_length, sample_file, token_rows
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.products import Product, find_products

ROOT = Path(__file__).resolve().parent.parent
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
# Of thresholds that stay: between them lies what others read, and what each text needs to read as much as another.
EFFORTS = (0.7, 0.85, 1.0, 1.2, 1.4)
TABLE_FACTORS = (0.5, 1.0, 2.0)
TABLE_SHARE = 0.6


def by_text(values: Tensor) -> Floats:
    """Mean f64[N] over the tokens of each text."""
    found: Floats = values.double().mean(1).numpy()
    return found


def at_equal_bytes(flat: Sequence[Decoded], read: float, each: bool = False) -> tuple[Floats, Floats]:
    """KL and share of changed tokens f64[N] of each text, at which fixed thresholds read this share of all weights.

    Args:
        flat: Results of fixed thresholds at EFFORTS.
        read: The share.
        each: Whether each text is to read it, at an effort of its own; else all do together, at one effort.
    """
    shares = np.stack([by_text(run.read) for run in flat], 1)  # [N, efforts]
    at = shares if each else np.broadcast_to(shares.mean(0), shares.shape)

    def between(values: list[Floats]) -> Floats:
        # np.interp wants what rises: the lowest effort reads most.
        of_texts = zip(at, np.stack(values, 1), strict=True)
        return np.array([np.interp(-read, -of_text, found) for of_text, found in of_texts])

    divergence = between([np.log(np.maximum(by_text(run.divergence), 1e-9)) for run in flat])
    return np.exp(divergence), between([by_text(~run.agrees) for run in flat])


def explained_by(decoded: Decoded) -> float:
    """Share of the variance of a token's log divergence that its surprisal and the entropy before it explain."""
    cost = log_divergence(decoded.divergence).flatten()
    known = torch.stack([decoded.surprisal.double().flatten(), decoded.entropy.double().flatten()], -1)
    known = torch.cat([known, torch.ones(len(cost), 1, dtype=torch.float64)], -1)
    error = cost - known @ torch.linalg.lstsq(known, cost[:, None]).solution[:, 0]
    return 1 - float(error.square().mean() / cost.var(correction=0))


def token_table(
    model: Any, products: Sequence[Product], calibration: PriceCalibration, rows: Tensor, prompt_tokens: int
) -> Tensor:
    """Scale f32[V] by token id, fitted on text as the load's map is."""
    thresholds = choose(calibration, TABLE_SHARE).thresholds
    runs = decode_each(model, products, [Run(thresholds, factor) for factor in TABLE_FACTORS], rows, prompt_tokens)
    cost = log_divergence(runs[TABLE_FACTORS.index(1)].divergence)
    means, predicted = fit_table(rows[:, prompt_tokens:], cost, model.config.vocab_size)
    fit = fit_scale_map(predicted.numpy(), knots_of(predicted), runs, TABLE_FACTORS)
    return to_float(np.interp(means.numpy(), fit.knots, fit.factors))


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.json is not None:
        check_writable(args.json)
    model, tokenizer = load_model(args.model, torch.float32)
    products = find_products(model)
    calibration, _ = read_price_calibration(args.calibration, products)

    def rows_of(path: Path, tokens: int, length: int) -> Tensor:
        texts = read_texts(path, tokenizer=tokenizer)
        return token_rows(texts, tokenizer, vocabulary=model.config.vocab_size, tokens=tokens, length=length)

    length = row_length(model.config.max_position_embeddings)
    fitted_on = rows_of(args.calibration_data, args.calibration_tokens, length)
    table = token_table(model, products, calibration, fitted_on, calibration.prompt_tokens)
    rows = rows_of(args.data, args.tokens, args.prompt_tokens + args.decode_tokens)
    load_map, found = calibration.load_map, []
    for share in args.bytes:
        thresholds = choose(calibration, share).thresholds
        flat = decode_each(model, products, [Run(thresholds, e) for e in EFFORTS], rows, args.prompt_tokens)
        base = flat[EFFORTS.index(1)]
        load = load_by(load_map, base)
        others = np.random.default_rng(0).permutation(load.ravel()).reshape(load.shape)
        ways = {
            "load": Run(thresholds, scale_by(load_map, load)),
            "load of another token": Run(thresholds, scale_by(load_map, others)),
            "table of tokens": Run(thresholds, table[rows[:, args.prompt_tokens :]]),
            "load and anticipation": Run(
                thresholds, scale_by(load_map, load), calibration.anticipations, to_float(load)
            ),
        }
        runs = dict(zip(ways, decode_each(model, products, list(ways.values()), rows, args.prompt_tokens), strict=True))
        explained = explained_by(base)
        print(
            f"{share:.0%} of all weights asked for, {len(rows)} texts; of the variance of log KL surprisal and entropy "
            f"explain {explained:.3f}"
        )
        read = float(base.read.mean(dtype=torch.float64))
        outcomes = {"flat": (read, by_text(base.divergence), by_text(~base.agrees))}
        # What the price would have to be corrected to, so that every text reads what was asked for.
        outcomes["flat, each text alike"] = (read, *at_equal_bytes(flat, read, each=True))
        for name, decoded in runs.items():
            read = float(decoded.read.mean(dtype=torch.float64))
            outcomes[name] = (read, by_text(decoded.divergence), by_text(~decoded.agrees))
        for name, (read, cost, changed) in outcomes.items():
            flat_cost, flat_changed = at_equal_bytes(flat, read)
            difference = bootstrap(relative_difference, [cost, flat_cost])
            assert difference is not None
            print(
                f"  {name:22} {read:.1%} read  KL {mean_with_interval(cost, '.4f')}  changed "
                f"{mean_with_interval(changed, '.1%')}  KL beside flat at as many bytes "
                f"{difference.value:+.1%} ({difference.low:+.1%} to {difference.high:+.1%})",
                flush=True,
            )
            figures = {
                "divergence": cost,
                "changed": changed,
                "flat divergence": flat_cost,
                "flat changed": flat_changed,
            }
            lists = {key: values.tolist() for key, values in figures.items()}
            found.append({"asked": share, "way": name, "read": read, "explained": explained} | lists)
    if args.json is not None:
        about = {name: value for name, value in vars(args).items() if name not in ("json", "model", "calibration")}
        about |= {"model": Path(args.model).name, "data": digest(args.data), "efforts": EFFORTS}
        about["calibration_data"] = digest(args.calibration_data)
        write(args.json, (json.dumps({"settings": about, "ways": found}) + "\n").encode())


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
    parser.add_argument(
        "--calibration-data", type=Path, default=sample_file(), metavar="FILE", help="text that the table is fitted on"
    )
    parser.add_argument("--calibration-tokens", type=int, default=2048)
    parser.add_argument("--json", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: run(parser.parse_args())))


if __name__ == "__main__":
    main()
