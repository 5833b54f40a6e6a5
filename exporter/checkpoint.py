"""Loads a Hugging Face checkpoint, or says in one line why it cannot be used."""

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from clada.exporter.families import FAMILIES
from clada.plugins.errors import CladaError


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_source(source: str, allow_pickle: bool) -> None:
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CladaError(f"{source} holds no config.json, so it is not a Hugging Face checkpoint")
        if not allow_pickle and not any(path.glob("*.safetensors")):
            if any(path.glob("*.bin")):
                raise CladaError(
                    f"{source} holds only a pickle checkpoint, which can run code when read; "
                    "convert it to safetensors, or pass --allow-pickle if you trust it"
                )
            raise CladaError(f"{source} holds no *.safetensors file")
    elif path.exists():
        raise CladaError(f"{source} is a file; give a checkpoint's folder or a Hugging Face model id")
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CladaError(f"no model at {source}: there is no such folder")


def load_config(source: str, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> Any:
    """Read a checkpoint's configuration and check that it can be exported.

    Raises:
        CladaError: There is no checkpoint, it is a pickle, not a causal LM, or of an unknown family.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _check_source(source, allow_pickle)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise CladaError(f"cannot read the configuration of {source}: {_one_line(error)}") from error
    if config.model_type not in FAMILIES:
        raise CladaError(f"model type '{config.model_type}' is not supported; known are: {', '.join(FAMILIES)}")
    architectures = config.architectures or []
    if not any(name.endswith("ForCausalLM") for name in architectures):
        raise CladaError(f"{source} is not a causal language model: its architecture is {', '.join(architectures)}")
    return config


def load_model(
    source: str, dtype: torch.dtype, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer for inference on the CPU.

    Args:
        source: A checkpoint's folder or a Hugging Face model id.
        dtype: The dtype to hold the weights in.
        trust_remote_code: Run code that the checkpoint brings.
        allow_pickle: Read pickle weights where there are no safetensors.

    Returns:
        The model, with dropout off, and its fast tokenizer.

    Raises:
        CladaError: As `load_config`, or the weights or the tokenizer are missing, incomplete or damaged.
    """
    config = load_config(source, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            attn_implementation="sdpa",
            output_loading_info=True,
            # Checked below, where the weight can be named.
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CladaError(f"cannot read the weights of {source}: {_one_line(error)}") from error
    model, info = loaded
    if info["mismatched_keys"]:
        name, stored, wanted = sorted(info["mismatched_keys"])[0]
        raise CladaError(
            f"{len(info['mismatched_keys'])} weights of {source} do not fit its config.json, such as {name}: "
            f"{list(stored)} instead of {list(wanted)}"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CladaError(f"{source} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CladaError(f"cannot read the tokenizer of {source}: {_one_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CladaError(f"the tokenizer of {source} has no tokenizer.json, which the runtime needs")
    return model.eval(), tokenizer
