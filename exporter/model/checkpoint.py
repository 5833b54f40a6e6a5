"""Loading of Hugging Face checkpoints, with one line of explanation where one cannot be used."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from clada.errors import CladaError
from clada.exporter.model.families import ACTIVATION_NAMES, FAMILIES
from clada.exporter.model.rope import check_rope

# Where transformers lists the files of a checkpoint in parts.
_INDEX = "model.safetensors.index.json"
_GENERATION_CONFIG = "generation_config.json"
_ADAPTER_CONFIG = "adapter_config.json"
# Fields of a configuration that must be 1 at least, where it has them.
_SIZES = ("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _reading(what: str, source: str) -> Iterator[None]:
    """Turn any error within the context into that of a checkpoint that cannot be read.

    Every kind: transformers meets a file that makes no sense wherever it first uses what it says.
    """
    try:
        yield
    except CladaError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError | SafetensorError) else f"{type(error).__name__}: "
        raise CladaError(f"cannot read the {what} of {source}: {kind}{_one_line(error)}") from error


def _json_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CladaError(f"{path} is not a JSON object")
    return content


def _check_index(path: Path, source: str, allow_pickle: bool) -> None:
    """Raise CladaError where a list of parts names anything but a safetensors file of the checkpoint's own folder."""
    with _reading("list of weight files", source):
        parts = _json_object(path).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
            raise CladaError(f"{path} lists no weight files: it needs a weight_map of tensor names to file names")
    for name in sorted(set(parts.values())):
        if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
            raise CladaError(f"{path} names the file '{name}', which is not in the checkpoint's own folder")
        if not allow_pickle and not name.endswith(".safetensors"):
            raise CladaError(
                f"{path} names the pickle file '{name}', which can run code when read; "
                "convert the checkpoint to safetensors, or pass --allow-pickle if you trust it"
            )


def _check_source(source: str, allow_pickle: bool) -> None:
    path = Path(source)
    if path.is_dir():
        if (path / _ADAPTER_CONFIG).exists():
            raise CladaError(
                f"{source} holds an adapter ({_ADAPTER_CONFIG}): merge it into its model (in peft: merge_and_unload), "
                "save that, and give the folder of the merged model"
            )
        if not (path / "config.json").is_file():
            raise CladaError(f"{source} holds no config.json, so it is not a Hugging Face checkpoint")
        if not allow_pickle and not any(path.glob("*.safetensors")):
            if any(path.glob("*.bin")):
                raise CladaError(
                    f"{source} holds only a pickle checkpoint, which can run code when read; "
                    "convert it to safetensors, or pass --allow-pickle if you trust it"
                )
            raise CladaError(f"{source} holds no *.safetensors file")
        if (path / _GENERATION_CONFIG).exists():
            # transformers goes on without one that it cannot read, and so without the tokens that end a text.
            with _reading("generation configuration", source):
                _json_object(path / _GENERATION_CONFIG)
    elif path.exists():
        raise CladaError(f"{source} is a file; give a checkpoint's folder or a Hugging Face model id")
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CladaError(f"no model at {source}: there is no such folder")


def _check_config(config: Any, source: str) -> None:
    if config.model_type not in FAMILIES:
        raise CladaError(f"model type '{config.model_type}' is not supported; known are: {', '.join(FAMILIES)}")
    architectures = config.architectures if isinstance(config.architectures, list) else [config.architectures]
    if not any(str(name).endswith("ForCausalLM") for name in architectures):
        named = ", ".join(str(name) for name in architectures if name) or "not named"
        raise CladaError(f"{source} is not a causal language model: its architecture is {named}")
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CladaError(
            f"the weights of {source} are quantized ({method or 'quantization_config'}), and only checkpoints in "
            "floating point can be exported: give the model that it was made from, and --quantize int4 or int8"
        )
    activation = getattr(config, FAMILIES[config.model_type].activation)
    if activation not in ACTIVATION_NAMES:
        raise CladaError(f"activation '{activation}' has no sparse op; known are: {', '.join(ACTIVATION_NAMES)}")
    check_rope(config)
    for name in _SIZES:
        size = getattr(config, name, 1)
        if isinstance(size, int) and size < 1:
            raise CladaError(f"the configuration of {source} has {name} {size}; it must be at least 1")


def load_config(source: str, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> Any:
    """Read a checkpoint's configuration and check that it can be exported.

    Raises:
        CladaError: There is no checkpoint, it is a pickle, quantized, not a causal LM, or of an unknown family.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _check_source(source, allow_pickle)
    with _reading("configuration", source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        _check_index(Path(index), source, allow_pickle)
    _check_config(config, source)
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
    with _reading("weights", source):
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
    with _reading("tokenizer", source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not getattr(tokenizer, "is_fast", False):
        raise CladaError(f"the tokenizer of {source} has no tokenizer.json, which the runtime needs")
    return model.eval(), tokenizer
