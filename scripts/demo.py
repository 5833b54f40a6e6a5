"""Demonstrates the demo model: export, run, and comparison with PyTorch and with all bytes read."""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from clada.contract.artifact import open_artifact
from clada.exporter.export import ExportConfig, export
from clada.exporter.from_artifact import make_sparse
from clada.exporter.graph.greedy import greedy_tokens
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.telemetry import mean_stats

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "demo"
# It ends before the line break: the tokenizer joins that with the indentation that follows.
PROMPT = '''def read_config(path):
    """Read a configuration file and return its sections."""'''
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, repetition_penalty=1.05, seed=1)
GREEDY_TOKENS = 64
ROUNDS = 5
# Where nothing else is said for as long as this, that it goes on is.
QUIET_SECONDS = 5.0


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that prints a line; until the next one, how long it has been is printed now and then."""
    said = time.monotonic()
    done = threading.Event()

    def report(line: str) -> None:
        nonlocal said
        said = time.monotonic()
        print(line, flush=True)

    def go_on() -> None:
        while not done.wait(QUIET_SECONDS):
            if time.monotonic() - said >= QUIET_SECONDS:
                print(f"  … {time.monotonic() - said:.0f} s", flush=True)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        done.set()
        thread.join()


def generate_aloud(session: Session, tokens: int) -> None:
    """Continue the prompt, and print the cost."""
    print(f"\n{PROMPT}", end="", flush=True)
    started = time.perf_counter()
    pieces = []
    for piece in session.stream(PROMPT, GenerationConfig(tokens, sampling=SAMPLING)):
        print(piece.text, end="", flush=True)
        pieces.append(piece)
    seconds = time.perf_counter() - started
    read = [piece.stats for piece in pieces if piece.stats is not None]
    mean = mean_stats(read)
    print(f"\n\n{len(read)} tokens in {seconds:.2f} s, prompt included")
    print(
        f"bytes read: {mean.read_fraction:.1%} of the weights'; a token: surprisal {mean.surprisal:.2f} nats, "
        f"entropy {mean.entropy:.2f} nats, load {mean.load:.2f}"
    )


def decode_speed(session: Session) -> float:
    """Tokens per second of greedy decoding, without the prompt."""
    times = [time.perf_counter() for _ in session.stream(PROMPT, GenerationConfig(GREEDY_TOKENS))]
    return (len(times) - 1) / (times[-1] - times[0])


def greedy(session: Session) -> list[int]:
    return session.generate(PROMPT, GenerationConfig(GREEDY_TOKENS))[0].tokens


def equal_tokens(ours: list[int], theirs: list[int]) -> int:
    """Number of equal tokens before the first difference."""
    count = min(len(ours), len(theirs))
    return int(np.cumprod(np.equal(ours[:count], theirs[:count])).sum())


def compare_with_pytorch(session: Session, path: Path) -> None:
    """Compare the file's tokens with those of the patched model in PyTorch."""
    model, _ = load_model(str(MODEL), torch.float32)
    make_sparse(model, open_artifact(path))
    calibrated = Calibrated.from_graph(path)
    ours = greedy(session)
    theirs = greedy_tokens(model, calibrated, session.pool_policy, session.encode(PROMPT), len(ours))
    worst = max(check.required for check in session.manifest.verification)
    print(
        f"agreement with PyTorch: {equal_tokens(ours, theirs)} of {len(ours)} greedy tokens; "
        f"verification needs {worst:.1e} at most"
    )


def compare_with_all_bytes(session: Session, dense: Session) -> None:
    """Compare speed and tokens of the file with its own at all bytes, which is the dense model."""
    ours, theirs = greedy(session), greedy(dense)
    # In turn, and the best of each: what else the machine does disturbs both alike.
    rounds = [(decode_speed(session), decode_speed(dense)) for _ in range(ROUNDS)]
    sparse_speed, dense_speed = map(max, zip(*rounds, strict=True))
    print(f"dense:  {dense_speed:.0f} tokens/s (all bytes)")
    print(
        f"sparse: {sparse_speed:.0f} tokens/s, {equal_tokens(ours, theirs)} of {len(ours)} greedy tokens as the dense "
        "model's, from the first on"
    )
    verdict = "is faster here too" if sparse_speed > 1.02 * dense_speed else "is not faster here"
    print(
        f"Sparse {verdict}. A model this small does not tell: choosing what to read costs about what it saves.\n"
        "How much faster the products get at the sizes of real models is measured, in two minutes, by\n"
        f"    {Path(sys.executable).with_name('clada')} bench --what linears"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "out" / "demo" / "model.onnx", help="default: %(default)s"
    )
    parser.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    args = parser.parse_args()

    with progress() as report:
        report(f"exporting {MODEL.relative_to(ROOT)}")
        export(args.output, str(MODEL), ExportConfig(overwrite=True), report=report)
    session = Session(args.output)
    generate_aloud(session, args.max_new_tokens)
    compare_with_pytorch(session, args.output)
    compare_with_all_bytes(session, Session(args.output, bytes=1))


if __name__ == "__main__":
    main()
