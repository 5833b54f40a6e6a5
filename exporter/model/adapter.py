"""Merging of a LoRA adapter into the model that it was trained for."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from clada.errors import CladaError
from clada.exporter.model.checkpoint_files import ADAPTER_CONFIG, json_object, one_line, reading

_WEIGHTS = "adapter_model.safetensors"


def check_adapter(folder: str) -> None:
    """Raise CladaError where a folder holds no adapter in safetensors, before a model is loaded for it."""
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file():
        raise CladaError(f"{folder} holds no {ADAPTER_CONFIG}, so it is no adapter's folder")
    with reading("configuration of the adapter", folder):
        json_object(path / ADAPTER_CONFIG)
    if not (path / _WEIGHTS).is_file():
        raise CladaError(f"{folder} holds no {_WEIGHTS}; save the adapter in safetensors (peft does)")


def _astray(adapted: Any, weights: Path) -> list[str]:
    """Names of weights that the file has and the model takes nowhere, or the other way round."""
    from peft import get_peft_model_state_dict

    with safe_open(weights, "pt") as stored:
        return sorted(set(stored.keys()) ^ get_peft_model_state_dict(adapted).keys())


def merge_adapter(model: Any, folder: str) -> Any:
    """Merge an adapter into a model's weights, as peft does.

    Args:
        model: A causal LM, as its checkpoint has it; it is changed.
        folder: Folder of the adapter, see `check_adapter`.

    Returns:
        The merged model.

    Raises:
        CladaError: It is of another model, or no LoRA.
    """
    from peft import PeftModel  # seconds of imports, for few

    parameters = model.num_parameters()
    try:
        adapted = PeftModel.from_pretrained(model, folder)
        astray = _astray(adapted, Path(folder) / _WEIGHTS)
        merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft meets what does not fit wherever it first uses it
        raise CladaError(f"the adapter in {folder} cannot be merged into this model: {one_line(error)}") from error
    if astray:
        raise CladaError(
            f"the adapter in {folder} is not of this model: {len(astray)} weights belong nowhere or are missing, such "
            f"as {astray[0]}"
        )
    if merged.num_parameters() != parameters:
        raise CladaError(f"the adapter in {folder} adds to the model's weights, and is no LoRA that can be merged")
    return merged
