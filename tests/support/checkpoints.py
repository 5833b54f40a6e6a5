"""Tiny random checkpoints of every supported family, with a tokenizer, as Hugging Face writes them."""

import json
import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from clada.exporter.calibration.text import read_texts, sample_file

VOCABULARY = 512
LAYERS = 2
NEURONS = 88

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # Large weights: outputs that depend on every part of the model.
    "initializer_range": 0.1,
}
_LLAMA_LIKE = {"intermediate_size": NEURONS, "num_key_value_heads": 2}

# By family; a test fails when a row of FAMILIES has none here.
CONFIGS = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": 6},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": True},
    "gpt_neox": {"intermediate_size": NEURONS},
    "opt": {"ffn_dim": NEURONS, "word_embed_proj_dim": 48, "init_std": 0.1},
}


def random_model(family: str, seed: int = 0, **changes) -> transformers.PreTrainedModel:
    """A tiny model with random weights, biases included."""
    config = AutoConfig.for_model(family, **{**_COMMON, **CONFIGS[family], **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the sample text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(read_texts(sample_file()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", pad_token="<end>")


def write_checkpoint(folder: Path, family: str, seed: int = 0, **changes) -> Path:
    """Save a tiny model and its tokenizer."""
    random_model(family, seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def keep_layers(folder: Path, count: int) -> None:
    """Cut a checkpoint of a Llama down to its first layers, in place."""
    path = folder / "model.safetensors"
    kept = {}
    for name, tensor in load_file(path).items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer is None or int(layer[1]) < count:
            kept[name] = tensor
    save_file(kept, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
