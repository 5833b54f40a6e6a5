"""Loading of Hugging Face checkpoints, with one line of explanation where one cannot be used."""

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from clada.errors import CladaError
from clada.exporter.model.adapter import check_adapter, merge_adapter
from clada.exporter.model.checkpoint_files import (
    check_index,
    check_source,
    is_gguf,
    narrow_type,
    reading,
    weight_files,
)
from clada.exporter.model.dequantize import check_method, dequantized, is_ours, method_of
from clada.exporter.model.held_weights import hold_narrow
from clada.exporter.model.linear_layers import unify_linears
from clada.exporter.model.rope import check_rope
from clada.exporter.model.structure import check_behavior, check_weights

# Classes that are causal language models, and the entry of a configuration that names one of the checkpoint's own.
_ARCHITECTURES = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_CAUSAL = "AutoModelForCausalLM"
# Fields of a configuration that name an activation.
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# Fields of a configuration that must be 1 at least, where it has them.
_SIZES = ("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")


def _check_config(config: Any, source: str) -> None:
    architectures = config.architectures if isinstance(config.architectures, list) else [config.architectures]
    # Types of the checkpoint's own code say themselves what they are.
    is_causal = _CAUSAL in (getattr(config, "auto_map", None) or {}) or _ARCHITECTURES.intersection(architectures)
    if not is_causal and not is_gguf(source):  # a GGUF names none
        named = ", ".join(str(name) for name in architectures if name) or "not named"
        raise CladaError(f"{source} is not a causal language model: its architecture is {named}")
    if not is_gguf(source):
        check_method(config, source)
    for name in _ACTIVATIONS:
        activation = getattr(config, name, None)
        if isinstance(activation, str) and activation not in ACT2FN:
            raise CladaError(f"activation '{activation}' is not known; known are: {', '.join(ACT2FN)}")
    check_rope(config)
    for name in _SIZES:
        size = getattr(config, name, 1)
        if isinstance(size, int) and size < 1:
            raise CladaError(f"the configuration of {source} has {name} {size}; it must be at least 1")


def _arguments(source: str) -> tuple[str, dict[str, Any]]:
    """Name and options by which transformers' loaders take a source."""
    if is_gguf(source):
        path = Path(source)
        return str(path.parent), {"gguf_file": path.name}
    return source, {}


def load_config(
    source: str, *, adapter: str | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Any:
    """Read a checkpoint's configuration and check that it, and an adapter for it, can be exported.

    Raises:
        CladaError: There is no checkpoint, it is a pickle, quantized, or not a dense causal LM, or no adapter.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_source(source, allow_pickle)
    if adapter is not None:
        check_adapter(adapter)
    where, options = _arguments(source)
    with reading("configuration", source):
        config = AutoConfig.from_pretrained(where, **options, trust_remote_code=trust_remote_code)
    if not options:
        check_index(source, allow_pickle)
    with reading("configuration", source):
        _check_config(config, source)
        check_weights(_skeleton(config, trust_remote_code))
    return config


def stored_as(source: str, config: Any) -> str | None:
    """Name of the format that a model's weights are dequantized from; None where they are in floating point."""
    return "GGUF" if is_gguf(source) else method_of(config)


def _skeleton(config: Any, trust_remote_code: bool) -> Any:
    """The model of a configuration, without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def parameter_count(config: Any, trust_remote_code: bool = False) -> int:
    """Number of a model's parameters, those that are tied counted once."""
    return int(_skeleton(config, trust_remote_code).num_parameters())


def _loaded(source: str, config: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a source, dequantized where it is quantized, and transformers' notes on its weights."""
    # Of weights that do not fit, `load_model` names one.
    given |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    where, options = _arguments(source)
    if options:
        given["quantization_config"] = GgufConfig(dequantize=True)
        # Its bar is drawn wherever standard error goes, and is no setting of transformers' logging.
        modeling_gguf_pytorch_utils.tqdm = functools.partial(tqdm, disable=True)
    settings: Any = getattr(config, "quantization_config", None)
    if is_ours(method_of(config)):
        del config.quantization_config
        cls = type(_skeleton(config, given["trust_remote_code"]))
        weights = dequantized(weight_files(source), settings, given["dtype"])
        loaded = cls.from_pretrained(None, config=config, state_dict=weights, **given)
    else:
        if settings is not None:
            config.quantization_config = settings | {"dequantize": True}
        loaded = AutoModelForCausalLM.from_pretrained(where, **options, config=config, **given)
    model, info = loaded
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is not quantized any more
    return model, info


def _held_type(source: str, config: Any, adapter: str | None, allow_pickle: bool) -> torch.dtype | None:
    """Type in which a checkpoint's weights can be held; None where they have to be float32."""
    if is_gguf(source) or method_of(config) is not None or adapter is not None or allow_pickle:
        return None  # what is dequantized, merged or unpickled is in float32
    with reading("weights", source):
        return narrow_type(source)


def _widened(narrow: Any, config: Any, trust_remote_code: bool) -> Any:
    """The same model in float32, which holds the matrices of a narrower one."""
    with init_empty_weights():  # buffers are computed, as a model in float32 has them
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    unify_linears(model)
    hold_narrow(model, narrow)
    model.generation_config = narrow.generation_config
    return model


def load_model(
    source: str,
    dtype: torch.dtype,
    *,
    held: bool = False,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer for inference on the CPU.

    Args:
        source: A checkpoint's folder, a GGUF file or a Hugging Face model id.
        dtype: The dtype to compute in.
        held: Keep matrices in the checkpoint's own type where that is narrower, and widen each as it is used: for
            float32, and for what takes inputs of products alone.
        adapter: Folder of a LoRA adapter to merge into it.
        trust_remote_code: Run code that the checkpoint brings.
        allow_pickle: Read pickle weights where there are no safetensors.

    Returns:
        The model, with dropout off and all its linear layers torch's own, and its fast tokenizer.

    Raises:
        CladaError: As `load_config`, or it is no decoder, the weights or the tokenizer are missing, incomplete or
            damaged, or the adapter is of another model.
    """
    config = load_config(source, adapter=adapter, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    where, options = _arguments(source)
    narrow = _held_type(source, config, adapter, allow_pickle) if held and dtype == torch.float32 else None
    with reading("weights", source):
        model, info = _loaded(
            source,
            config,
            dtype=narrow or dtype,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
        )
    if info["mismatched_keys"]:
        name, stored, wanted = sorted(info["mismatched_keys"])[0]
        raise CladaError(
            f"{len(info['mismatched_keys'])} weights of {source} do not fit its config.json, such as {name}: "
            f"{list(stored)} instead of {list(wanted)}"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CladaError(f"{source} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    with reading("tokenizer", source):
        tokenizer = AutoTokenizer.from_pretrained(where, **options, trust_remote_code=trust_remote_code)
    if not getattr(tokenizer, "is_fast", False):
        raise CladaError(f"the tokenizer of {source} has no tokenizer.json, which the runtime needs")
    if adapter is not None:
        model = merge_adapter(model, adapter)
    unify_linears(model)
    if narrow is not None:
        model = _widened(model, config, trust_remote_code)
    check_behavior(model.eval())
    return model, tokenizer
