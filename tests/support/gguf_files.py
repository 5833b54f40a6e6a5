"""GGUF files of tiny models, written by llama.cpp's own package."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from tests.support.checkpoints import tiny_tokenizer

BLOCKS = gguf.GGMLQuantizationType.Q8_0


def write_gguf(path: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Write a tiny Qwen2, its matrices in 8 bits; returns the weights as that package reads them, by HF's names."""
    config, name = model.config, model.config.model_type
    writer = gguf.GGUFWriter(str(path), name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
    values = {}
    for theirs, tensor in model.state_dict().items():
        array, ours = tensor.float().numpy(), names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if array.ndim == 2:
            blocks = gguf.quants.quantize(array, BLOCKS)
            array = gguf.quants.dequantize(blocks, BLOCKS)
            writer.add_tensor(ours, blocks, raw_dtype=BLOCKS)
        else:
            writer.add_tensor(ours, array)
        values[theirs] = torch.from_numpy(np.array(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    model = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [f"<unused{index}>" for index in range(vocabulary - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
