"""The main job on the demo model: export it, run it, and compare it with PyTorch."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from clada.exporter.checkpoint import load_model
from clada.exporter.export import ExportConfig, export
from clada.exporter.patch import sparsify
from clada.exporter.verify import greedy_tokens, load_constants
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.telemetry import mean_stats

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "demo"
# It ends before the line break: the tokenizer joins that with the indentation that follows.
PROMPT = '''def read_config(path):
    """Read a configuration file and return its sections."""'''
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, repetition_penalty=1.05, seed=1)
GREEDY_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "out" / "demo" / "model.onnx", help="default: %(default)s"
    )
    parser.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    args = parser.parse_args()

    export(args.output, str(MODEL), ExportConfig(overwrite=True))

    session = Session(args.output)
    print(f"\n{PROMPT}", end="", flush=True)
    started = time.perf_counter()
    pieces = []
    for piece in session.stream(PROMPT, GenerationConfig(args.max_new_tokens, sampling=SAMPLING)):
        print(piece.text, end="", flush=True)
        pieces.append(piece)
    seconds = time.perf_counter() - started
    read = [piece for piece in pieces if piece.stats is not None]
    mean = mean_stats([piece.stats for piece in read if piece.stats is not None])
    print(f"\n\n{len(read)} tokens in {seconds:.2f} s, prompt included: {len(read) / seconds:.0f} tokens/s")
    print(
        f"neurons skipped: {1 - mean.active_fraction:.1%}; a token: surprisal {mean.surprisal:.2f} nats, "
        f"entropy {mean.entropy:.2f} nats, load {mean.load:.2f}"
    )
    realised = [layer.realised for layer in session.manifest.calibration.layers]
    print("sparsity realised in each layer, on calibration text: " + " ".join(f"{share:.0%}" for share in realised))

    model, _ = load_model(str(MODEL), torch.float32)
    sparsity = sparsify(model)
    load_map = load_constants(args.output, sparsity)
    ours = session.generate(PROMPT, GenerationConfig(GREEDY_TOKENS))[0].tokens
    theirs = greedy_tokens(model, sparsity, load_map, session.pool_policy, session.encode(PROMPT), len(ours))
    equal = int(np.cumprod(np.equal(ours, theirs)).sum())
    worst = max(check.required for check in session.manifest.verification)
    print(f"agreement with PyTorch: {equal} of {len(ours)} greedy tokens; verification needs {worst:.1e} at most")


if __name__ == "__main__":
    main()
