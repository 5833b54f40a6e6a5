"""Compares completions by an artifact that skips inputs, at shares of its bytes, with those of its dense model.

Greedy. Says how many completions are the dense model's to the last token, after how many tokens the
others leave it, and how alike the texts are. Prints a table, and writes it as JSON.
"""

import argparse
import json
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from clada.command_line import exit_code
from clada.contract.files import check_writable, write
from clada.errors import CladaError
from clada.evaluation.statistics import mean_with_interval
from clada.exporter.calibration.text import digest, read_texts
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.find_model import find_model
from clada.runtime.generation import Completion

ROOT = Path(__file__).resolve().parent.parent
HELDOUT = ROOT / "benchmarks" / "data" / "heldout.jsonl"
GREEDY = SamplingConfig(temperature=0)
BATCH = 8


def prompts_of(session: Session, path: Path, count: int, tokens: int) -> list[list[int]]:
    """Stretches of this many tokens, from as many texts as there are, each from another place.

    Raises:
        CladaError: There is too little text.
    """
    encoded = (session.tokenizer.encode(text).ids for text in read_texts(path))
    streams = [ids for ids in encoded if len(ids) >= tokens]
    rng = np.random.default_rng(0)
    starts = [(n, int(rng.integers(len(streams[n]) - tokens + 1))) for n in np.resize(np.arange(len(streams)), count)]
    if len(set(starts)) < count:
        raise CladaError(f"{path} holds too few texts of {tokens} tokens for {count} prompts")
    return [streams[n][start : start + tokens] for n, start in starts]


def completions(session: Session, prompts: list[list[int]], tokens: int) -> list[Completion]:
    """Complete each prompt, a few at a time, as those share their reads of weights."""
    config = GenerationConfig(max_new_tokens=tokens, sampling=GREEDY)
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    return [completion for batch in batches for completion in session.generate(batch, config)]


def until_they_part(ours: Completion, theirs: Completion) -> float:
    """The share of the longer of two completions before they part."""
    if ours.tokens == theirs.tokens:
        return 1.0
    pairs = list(zip(ours.tokens, theirs.tokens, strict=False))
    parted = next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
    return parted / max(len(ours.tokens), len(theirs.tokens))


def run(args: argparse.Namespace) -> None:
    """Generate, compare and print."""
    if args.json is not None:
        check_writable(args.json)
    path = find_model(args.model)
    dense = Session(path, threads=args.threads, bytes=1)
    prompts = prompts_of(dense, args.data, args.prompts, args.prompt_tokens)
    reference, found = completions(dense, prompts, args.tokens), []
    dense.close()
    for share in args.bytes:
        with Session(path, threads=args.threads, bytes=share) as session:
            ours = completions(session, prompts, args.tokens)
        pairs = list(zip(ours, reference, strict=True))
        same = np.array([one.tokens == other.tokens for one, other in pairs], np.float64)
        until = np.array([until_they_part(*pair) for pair in pairs])
        alike = np.array([SequenceMatcher(None, a.text, b.text, autojunk=False).ratio() for a, b in pairs])
        read = float(np.mean([stats.read_fraction for one in ours for stats in one.stats]))
        print(
            f"{share:.0%} of all weights asked for, {read:.1%} read: the same {mean_with_interval(same, '.0%')}, until "
            f"they part {mean_with_interval(until, '.0%')} of the tokens, alike {mean_with_interval(alike, '.2f')}",
            flush=True,
        )
        lists = {"same": same.tolist(), "until": until.tolist(), "alike": alike.tolist()}
        found.append({"asked": share, "read": read} | lists)
    if args.json is not None:
        about = {name: value for name, value in vars(args).items() if name not in ("json", "model")}
        about |= {"model": path.parent.name, "data": digest(args.data)}
        write(args.json, (json.dumps({"settings": about, "shares": found}) + "\n").encode())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an artifact that was exported with --bytes")
    parser.add_argument("--bytes", nargs="+", type=float, default=[0.85, 0.68, 0.55], metavar="SHARE")
    parser.add_argument("--data", type=Path, default=HELDOUT, metavar="FILE", help="text to complete")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: run(parser.parse_args())))


if __name__ == "__main__":
    main()
