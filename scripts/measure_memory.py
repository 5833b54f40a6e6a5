"""Measures the memory that exports take, by the size of the model: random checkpoints in bfloat16, a process each.

Prints a line for each checkpoint and format, with the most memory that the process had at once: its own, and with the
pages of files that it had mapped, which the system takes back when it needs them. Then the line through them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from clada.command_line import exit_code
from clada.errors import CladaError
from clada.exporter.calibration.text import read_texts, sample_file

# Shapes of Llama 3.2 1B and of narrower ones: width, layers, neurons, by billions of parameters.
SHAPES = {"0.25": (768, 12, 3072), "0.5": (1024, 16, 5632), "1.2": (2048, 16, 8192)}
VOCABULARY = 128256
HEADS = 16
FORMATS = ("float32", "float16", "int8", "int4")
# What is asked: memory of an export, as a share of the checkpoint's size and in gigabytes beside it.
SHARE, BESIDE = 1.3, 2.0
GIGABYTE = 1e9


@dataclass(frozen=True)
class Peak:
    """The most memory that a process had at once, in gigabytes: its own, and with the pages of mapped files."""

    own: float
    mapped_too: float


def write_checkpoint(folder: Path, width: int, layers: int, neurons: int) -> float:
    """Write a random Llama in bfloat16 with a tokenizer; returns its size in gigabytes."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=neurons,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(read_texts(sample_file()), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size / GIGABYTE


def _resident(pid: int) -> Peak:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: float(line.split()[1]) * 1024 / GIGABYTE for line in lines if line.startswith("Rss")}
    return Peak(sizes["RssAnon"], sizes["RssAnon"] + sizes["RssFile"])


def peak_of(command: Sequence[str]) -> Peak:
    """Run a command and look at its memory twenty times a second.

    Raises:
        CladaError: It failed.
    """
    most = Peak(0.0, 0.0)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                now = _resident(process.pid)
            except (KeyError, ProcessLookupError, FileNotFoundError):  # it has just ended
                break
            most = Peak(max(most.own, now.own), max(most.mapped_too, now.mapped_too))
            time.sleep(0.05)
        if process.wait() != 0:
            output.seek(0)
            raise CladaError(f"{' '.join(command)} failed: {output.read().strip().splitlines()[-1]}")
    return most


def run(sizes: Sequence[str], formats: Sequence[str], tokens: int) -> None:
    """Export each size in each format, and print what it took."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in formats}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            checkpoint = Path(folder) / size
            stored = write_checkpoint(checkpoint, *SHAPES[size])
            for kind in formats:
                out = Path(folder) / "out" / "model.onnx"
                command = [sys.executable, "-m", "clada", "export", str(out), "--model", str(checkpoint), "--overwrite"]
                command += ["--calibration-tokens", str(tokens)]
                command += ["--quantize", kind] if kind.startswith("int") else ["--dtype", kind]
                peak = peak_of(command)
                found[kind].append((stored, peak.mapped_too))
                asked = SHARE * stored + BESIDE
                print(
                    f"{size} B, {kind:7}: checkpoint {stored:.2f} GB, export {peak.own:.2f} GB of its own, "
                    f"{peak.mapped_too:.2f} GB with mapped files; {SHARE} x + {BESIDE:.0f} GB is {asked:.2f}",
                    flush=True,
                )
    for kind, points in found.items():
        if len(points) > 1:
            slope, start = np.polyfit(*np.transpose(points), 1)
            print(f"{kind}: {slope:.2f} times the checkpoint and {start:.2f} GB")


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES), help="billions of parameters")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["int4"])
    parser.add_argument("--calibration-tokens", type=int, default=512)
    args = parser.parse_args()
    sys.exit(exit_code(lambda: run(args.sizes, args.formats, args.calibration_tokens)))


if __name__ == "__main__":
    main()
