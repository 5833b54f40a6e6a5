"""Times an artefact that skips inputs at shares of its weights' bytes, beside ONNX Runtime's dense graph of the same.

All decode the same tokens after the same prompt, in turns; the dense graph is the artefact's own with MatMul in the
place of our op, of float weights. Prints a table, and writes it as JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from clada.benchmark.contender import Contender
from clada.benchmark.dense import make_dense
from clada.benchmark.floor import read_bandwidth
from clada.benchmark.machine import machine
from clada.benchmark.timing import Samples, measure
from clada.exporter.output import check_writable, write
from clada.plugins.command_line import exit_code
from clada.plugins.errors import CladaError
from clada.runtime import Session
from clada.runtime.backends.in_place import InPlaceModel
from clada.runtime.backends.onnxruntime import Execution
from clada.runtime.find_model import find_model

DENSE = "ONNX Runtime, dense"
TOKENS = 8


class Loop:
    """A session after a prompt, which reads the same tokens again and again."""

    def __init__(self, session: Session, prompt: list[int], tokens: list[int]) -> None:
        self._session, self._tokens = session, tokens
        self._context = session.prefill([prompt])
        self._state = self._context

    def go_back(self) -> None:
        """Forget what came after the prompt, and read one token, which binds what is read anew."""
        self._state = self._context.copy()
        self._session.decode(self._state, self._tokens[:1])

    def run(self) -> float:
        """Read the other tokens; the share of the weights' bytes that was read."""
        stats = [self._session.decode(self._state, [token])[0] for token in self._tokens[1:]]
        return float(np.mean([s.read_fraction for s in stats]))


@contextmanager
def dense_graph(session: Session) -> Iterator[Path]:
    """A file beside an artefact's graph for one text in which ordinary products take the place of ours."""
    found = session.artefact.in_place_model
    if found is None:
        raise CladaError("the artefact has no graph with an in-place cache, which is what is timed")
    model = onnx_ir.load(found)
    make_dense(model)
    path = found.with_name(f"{found.stem}.dense{found.suffix}")
    try:
        onnx_ir.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def bytes_of_products(session: Session) -> float:
    """Of all weights that a token may read."""
    inputs, quantization = session.manifest.inputs, session.manifest.quantization
    assert inputs is not None
    of_weight: float = np.dtype(session.manifest.model.dtype).itemsize
    if quantization is not None:
        of_weight = quantization.bits / 8 + 2 / quantization.block_size
    return sum(product.inputs * product.outputs for product in inputs.products) * of_weight


def line(name: str, samples: Samples, reference: Samples, size: float) -> tuple[str, dict[str, Any]]:
    """A row of the table, and what is written of it."""
    seconds, theirs = np.array(samples.seconds), np.array(reference.seconds)
    share = float(np.mean(samples.active))
    ratio = float(np.median(theirs / seconds))
    floor = float(np.median(size * share / np.array(samples.bandwidth) / seconds))
    quartiles = np.percentile(1e3 * seconds, [25, 50, 75]).tolist()
    text = (
        f"{name:22} {quartiles[1]:7.1f} ms ({quartiles[0]:.1f} - {quartiles[2]:.1f})  {ratio:5.2f}x  "
        f"{share:6.1%} of the bytes, at {floor:.0%} of what memory gives"
    )
    return text, {"name": name, "ms": quartiles, "ratio": ratio, "read": share, "of_bandwidth": floor}


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.json is not None:
        check_writable(args.json)
    path = find_model(args.model)
    sessions = {f"ours, bytes {share:g}": Session(path, threads=args.threads, bytes=share) for share in args.bytes}
    first = next(iter(sessions.values()))
    if first.manifest.inputs is None:
        raise CladaError(f"{path} skips neurons: export it with --bytes")
    # One loaded graph serves all of ours: a share is an input of it.
    graph = first._single
    for session in sessions.values():
        vars(session)["_single"] = graph
    rng = np.random.default_rng(0)
    vocabulary = first.manifest.model.vocabulary_size
    prompt, tokens = (rng.integers(vocabulary, size=n).tolist() for n in (args.context, 1 + TOKENS))
    if args.prompt is not None:
        ids = first.tokenizer.encode(args.prompt.read_text(encoding="utf-8")).ids
        prompt, tokens = ids[: args.context], ids[args.context : args.context + 1 + TOKENS]
    loops = {name: Loop(session, prompt, tokens) for name, session in sessions.items()}
    if first.manifest.quantization is None:
        with dense_graph(first) as file:
            theirs = Session(path, threads=args.threads)
            vars(theirs)["_single"] = InPlaceModel(file, theirs.context_length, Execution(args.threads))
            loops[DENSE] = Loop(theirs, prompt, tokens)
    contenders = [Contender(name, loop.run, repeats=TOKENS, prepare=loop.go_back) for name, loop in loops.items()]
    samples = measure(contenders, args.rounds, partial(read_bandwidth, args.threads), "decoding")
    reference = samples[DENSE if DENSE in samples else next(iter(samples))]
    if DENSE in samples:
        samples[DENSE].active[:] = [1.0] * args.rounds  # its graph counts nothing
    size = bytes_of_products(first)
    found = [line(name, of_name, reference, size) for name, of_name in samples.items()]
    here = machine()
    print(f"{here['processor']}, {args.threads} threads, {graph.kernels}; {args.rounds} rounds, context {len(prompt)}")
    print("\n".join(text for text, _ in found))
    if args.json is not None:
        about = {"artefact": first.manifest.model.family, "context": len(prompt), "rounds": args.rounds}
        content = {"settings": about | {"threads": args.threads}, "machine": here, "rows": [row for _, row in found]}
        write(args.json, (json.dumps(content, indent=1) + "\n").encode())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the artefact's .onnx file or folder")
    parser.add_argument("--bytes", nargs="+", type=float, default=[1, 0.7, 0.6, 0.5], metavar="SHARE")
    parser.add_argument("--prompt", type=Path, metavar="FILE", help="text to read; random tokens where not given")
    parser.add_argument("--context", type=int, default=64, help="tokens before those that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: run(parser.parse_args())))


if __name__ == "__main__":
    main()
