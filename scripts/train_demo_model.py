"""Train a small model with its own tokenizer on the Python standard library's sources: the demo model, by default.

The text is on every machine that has Python, so the run needs no download. Files are split by a hash of
their path into training, calibration and held-out sets; the calibration set becomes the sample text that
`clada-export` calibrates on by default, and the held-out set is only ever scored.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
MODEL_DIR = ROOT / "models" / "demo"
CALIBRATION_FILE = ROOT / "exporter" / "data" / "calibration.jsonl"
HELDOUT_FILE = ROOT / "benchmarks" / "data" / "heldout.jsonl"

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
CONTEXT = 512
BATCH = 16
# Tables of code points and vendored wheels teach nothing about Python.
EXCLUDED_DIRS = {"site-packages", "__pycache__", "encodings", "ensurepip"}
SAMPLE_BYTES = 240_000
SAMPLE_CHUNK = 4_000


@dataclass(frozen=True)
class Size:
    """Sizes of a model: widths of the hidden state and of the feed-forward networks, numbers of layers and of heads."""

    hidden: int
    neurons: int
    layers: int
    heads: int
    kv_heads: int


def llama_config(size: Size, **common: Any) -> LlamaConfig:
    """Configuration of a Llama: SwiGLU, grouped queries."""
    return LlamaConfig(
        intermediate_size=size.neurons,
        num_key_value_heads=size.kv_heads,
        **common,
    )


def opt_config(size: Size, **common: Any) -> OPTConfig:
    """Configuration of an OPT: ReLU without a gate, learned positions; the size's kv_heads is not used."""
    return OPTConfig(
        ffn_dim=size.neurons,
        word_embed_proj_dim=size.hidden,
        activation_function="relu",
        dropout=0.0,
        **common,
    )


# What each family's model is made of; the sizes give some 5 M parameters.
FAMILIES: dict[str, tuple[Callable[..., PretrainedConfig], Size]] = {
    "llama": (llama_config, Size(hidden=256, neurons=704, layers=6, heads=4, kv_heads=2)),
    "opt": (opt_config, Size(hidden=256, neurons=1024, layers=6, heads=4, kv_heads=4)),
}


def stdlib_files() -> list[Path]:
    """Python sources of the running interpreter's standard library, sorted, relative to its root."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(path for path in files if not EXCLUDED_DIRS & set(path.parts))


def split_of(path: Path) -> str:
    """Split that a file belongs to: 2% held out, 2% calibration, the rest training."""
    bucket = hashlib.sha256(path.as_posix().encode()).digest()[0] % 50
    return {0: "heldout", 1: "calibration"}.get(bucket, "train")


def read_split(name: str) -> Iterator[str]:
    """Yield the text of every file of a split, without files that are not UTF-8."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in stdlib_files():
        if split_of(path) == name:
            try:
                yield (root / path).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that starts every text with the end-of-text token, as the model is trained to expect."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_split("train"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_rows(tokenizer: PreTrainedTokenizerFast, split: str) -> torch.Tensor:
    """A split as i64[N, CONTEXT + 1]: each row is the end-of-text token and CONTEXT consecutive tokens."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(list(read_split(split)))
    stream = np.concatenate([np.asarray(e.ids, dtype=np.int64) for e in encoded])
    count = len(stream) // CONTEXT
    rows = torch.from_numpy(stream[: count * CONTEXT].reshape(count, CONTEXT))
    start = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int64)
    return torch.cat([start, rows], dim=1)


def build_model(family: str, size: Size, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Create a causal LM with random weights."""
    end = tokenizer.eos_token_id
    config = FAMILIES[family][0](
        size,
        vocab_size=VOCAB_SIZE,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return AutoModelForCausalLM.from_config(config)


def loss_of(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of a batch of rows, in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: Any, rows: torch.Tensor) -> float:
    """Mean loss over all held-out rows, in nats per token."""
    model.eval()
    losses = [loss_of(model, batch).item() * len(batch) for batch in rows.split(BATCH)]
    model.train()
    return sum(losses) / len(rows)


def optimizers_for(model: Any) -> list[torch.optim.Optimizer]:
    """Create the optimizers: Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Learning-rate factor: a short warm-up, then a linear fall to zero over the last 60% of the run."""
    warmup = min(1.0, (step + 1) / 100)
    return warmup * min(1.0, (steps - step) / (0.6 * steps))


def train(model: Any, rows: torch.Tensor, heldout: torch.Tensor, steps: int, seed: int) -> None:
    """Train in place for a number of steps, each on BATCH rows drawn without replacement within an epoch."""
    generator = torch.Generator().manual_seed(seed)
    compiled_loss = torch.compile(loss_of)
    optimizers = optimizers_for(model)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: schedule(s, steps)) for o in optimizers]
    batches: list[torch.Tensor] = []
    started = time.monotonic()
    for step in range(steps):
        if not batches:
            order = torch.randperm(len(rows), generator=generator)
            batches = [b for b in order.split(BATCH) if len(b) == BATCH]
        loss = compiled_loss(model, rows[batches.pop()])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
        if step % 100 == 0 or step == steps - 1:
            elapsed = time.monotonic() - started
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {elapsed:.0f} s", flush=True)
        if (step + 1) % 1000 == 0:
            print(f"held-out loss {heldout_loss(model, heldout):.3f}", flush=True)


def write_sample(path: Path, split: str) -> None:
    """Write a split as JSONL, one chunk of text a line, evenly drawn from all its files."""
    chunks: list[str] = []
    for text in read_split(split):
        chunks += [text[i : i + SAMPLE_CHUNK] for i in range(0, len(text), SAMPLE_CHUNK)]
    keep = max(1, math.ceil(sum(map(len, chunks)) / SAMPLE_BYTES))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for chunk in chunks[::keep]:
            out.write(json.dumps({"text": chunk}) + "\n")


MODEL_CARD = """---
library_name: transformers
license: psf-2.0
pipeline_tag: text-generation
---
# CLADA demo model

A {architecture} of {parameters:,} parameters with its own {vocab}-token byte-level BPE tokenizer, trained on the Python
standard library so that every command of this project can be tried, and checked, with nothing to download.
It completes Python in the standard library's manner; it knows nothing else.

| | |
|---|---|
| data | the standard library's sources, CPython {python}, without code-page tables and bundled wheels |
| split | by a hash of the path: 2% of the files held out, 2% kept for calibration, the rest for training |
| training tokens | {tokens:,} a pass, {passes:.1f} passes, {steps:,} steps of {batch} x {context} |
| held-out | {heldout_tokens:,} tokens: **{loss:.3f} nats a token** (perplexity {ppl:.1f}), {bits:.2f} bits a byte |
| precision | trained under bfloat16 autocast, stored in bfloat16 |
| context | {context} tokens |
| settings | {settings} |
| time | {minutes:.0f} minutes on two CPU cores |

Made by `scripts/train_demo_model.py` with the settings above. The text, and therefore the weights, fall under the PSF
license (`exporter/data/LICENSE-PSF.txt`).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="default: %(default)s")
    for field in dataclasses.fields(Size):
        name = field.name.replace("_", "-")
        parser.add_argument(f"--{name}", type=int, help="default: that of the family's 5 M parameters")
    parser.add_argument("--output", type=Path, default=MODEL_DIR, help="folder for the model (default: %(default)s)")
    parser.add_argument("--calibration-output", type=Path, default=CALIBRATION_FILE, help="file for the sample text")
    parser.add_argument("--heldout-output", type=Path, default=HELDOUT_FILE, help="file for text to evaluate on")
    parser.add_argument("--steps", type=int, default=2600, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _size(args: argparse.Namespace) -> Size:
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Size)}
    return dataclasses.replace(FAMILIES[args.family][1], **{k: v for k, v in given.items() if v is not None})


def main() -> None:
    args = _parser().parse_args()
    size = _size(args)

    started = time.monotonic()
    torch.manual_seed(args.seed)
    write_sample(args.calibration_output, "calibration")
    write_sample(args.heldout_output, "heldout")
    tokenizer = train_tokenizer()
    rows, heldout = token_rows(tokenizer, "train"), token_rows(tokenizer, "heldout")
    print(f"{rows.numel():,} training and {heldout.numel():,} held-out tokens, {time.monotonic() - started:.0f} s")

    model = build_model(args.family, size, tokenizer)
    train(model, rows, heldout, args.steps, args.seed)
    model.to(torch.bfloat16)
    loss = heldout_loss(model, heldout)
    heldout_bytes = sum(len(tokenizer.decode(row).encode()) for row in heldout[:, 1:])

    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    settings = {"family": args.family, "steps": args.steps, "seed": args.seed, **dataclasses.asdict(size)}
    card = MODEL_CARD.format(
        architecture=type(model).__name__,
        settings=", ".join(f"{name} {value}" for name, value in settings.items()),
        parameters=sum(p.numel() for p in model.parameters()),
        vocab=VOCAB_SIZE,
        python=platform.python_version(),
        tokens=rows.numel(),
        passes=args.steps * BATCH / len(rows),
        steps=args.steps,
        batch=BATCH,
        context=CONTEXT,
        heldout_tokens=heldout.numel(),
        loss=loss,
        ppl=math.exp(loss),
        bits=loss / math.log(2) * heldout[:, 1:].numel() / heldout_bytes,
        minutes=(time.monotonic() - started) / 60,
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")
    print(f"held-out loss {loss:.3f}; wrote {args.output}")


if __name__ == "__main__":
    main()
