"""Tiny random models of every causal model type that transformers knows."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.checkpoints import VOCABULARY

TYPES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# Those that can be exported; all others are refused.
# fmt: off
EXPORTED = (
    "apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "cohere_compass_text", "ctrl",
    "cwm", "diffllama", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "gemma4_text",
    "gemma4_unified_text", "glm", "glm4", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gpt_neox_japanese", "gptj", "granite", "granite_swa", "helium", "hunyuan_v1_dense", "hyperclovax", "internlm3",
    "iquestcoder", "jais2", "lfm2", "llama", "ministral", "ministral3", "mistral", "modernbert-decoder", "moshi", "mpt",
    "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3",
    "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
)
# fmt: on
CONTEXT = 128
LAYERS = 4
# What is set where a type's configuration has a field of this name. Windows are shorter than what tests read.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "word_embed_proj_dim": 64,
    "d_model": 64,
    "intermediate_size": 88,
    "ffn_dim": 88,
    "decoder_ffn_dim": 88,
    "moe_intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "decoder_layers": LAYERS,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "rotary_dim": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "sliding_window": 6,
    "window_size": 6,
    "max_position_embeddings": CONTEXT,
    "max_seq_len": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # Large weights: outputs that depend on every part of the model.
    "initializer_range": 0.1,
    "init_std": 0.1,
}
# What some types need beside or instead of that; None leaves a field as it is.
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_ODD: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"text_config": {"num_key_value_heads": 4}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "fuyu": {"text_config": {"model_type": "persimmon", "hidden_size": 64, "num_hidden_layers": 2}},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "num_kv_shared_layers": 0,
        "intermediate_size": [88] * LAYERS,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "minicpm3": {"num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16, "num_attention_heads": None},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "qwen4_exp": {"text_config": {"num_experts_per_tok": 2}},
    "qwen4_exp_text": {"num_experts_per_tok": 2},
    "reformer": {"is_decoder": True},
    "xlnet": {"d_head": 16},
    "youtu": {"num_key_value_heads": 4},
    "zamba2": {"layer_types": ["mamba"] * LAYERS},
}


def _sizes_of(cls: type[PretrainedConfig]) -> dict[str, Any]:
    """Our sizes by the fields that a class of configurations, and those within it, have."""
    fields = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})} | set(cls.attribute_map)
    inner = {name: _sizes_of(of) for name, of in cls.sub_configs.items() if issubclass(of, PretrainedConfig)}
    return {name: value for name, value in _SIZES.items() if name in fields} | {k: v for k, v in inner.items() if v}


def tiny_config(kind: str, **changes: Any) -> PretrainedConfig:
    """A small configuration of a type."""
    given = _sizes_of(CONFIG_MAPPING[kind])
    for name, value in (_ODD.get(kind, {}) | changes).items():
        given[name] = given.get(name, {}) | value if isinstance(value, dict) else value
    return AutoConfig.for_model(kind, **{name: value for name, value in given.items() if value is not None})


def architecture(kind: str) -> str:
    """Name of the class of a type's causal models."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    return names if isinstance(names, str) else names[0]


def tiny_model(kind: str, **changes: Any) -> Any:
    """A model of it with random weights, biases included, seeded."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model
