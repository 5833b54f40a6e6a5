"""What sparsity costs: the README's table, measured on text that was not calibrated on.

Prints a Markdown table: for each mean sparsity, the KL divergence from the dense model and the share of next tokens
that stay the same, of the plain CATS rule (equal sparsity in each layer, raw activations) and of ours.
"""

import argparse
from pathlib import Path

import torch

from clada.exporter.calibrate import CalibrationConfig, Reference, calibrate
from clada.exporter.calibration_text import read_texts, sample_file, token_rows
from clada.exporter.checkpoint import load_model
from clada.exporter.patch import sparsify

RULES = {
    "CATS": {"allocation": "uniform", "importance": "activation"},
    "CLADA": {"allocation": "kl", "importance": "contribution"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).resolve().parent.parent / "models" / "demo"))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    args = parser.parse_args()

    model, tokenizer = load_model(args.model, torch.float32)
    sparsity = sparsify(model)
    rows = token_rows(
        read_texts(sample_file()), tokenizer, vocabulary=model.config.vocab_size, tokens=16384, length=256
    )
    calibration_rows, other_rows = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    reference = Reference(model, other_rows)

    headers = [f"{name}: {figure}" for figure in ("KL, nats a token", "next tokens unchanged") for name in RULES]
    print(f"| mean sparsity | {' | '.join(headers)} |\n|---|{'---|' * len(headers)}")
    for target in args.sparsities:
        measured = []
        for rule in RULES.values():
            calibrate(model, sparsity, calibration_rows, CalibrationConfig(target_sparsity=target, **rule))
            measured.append(reference.compare(sparsity))
        cells = [f"{m.divergence:.4f}" for m in measured] + [f"{m.agreement:.1%}" for m in measured]
        print(f"| {target:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
