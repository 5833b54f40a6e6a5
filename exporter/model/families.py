"""Families whose neurons can be skipped, and the paths of their feed-forward networks; a new family is one row.

Inputs are skipped in dense decoders of every type, of which nothing is listed; see structure.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clada.errors import CladaError
from clada.ops import SPARSE_FFN, SPARSE_GATED_FFN, Op


@dataclass(frozen=True)
class Family:
    """Paths of the feed-forward networks of a family of models.

    Args:
        op: The op that takes its place.
        layers: Path from the model to the list of its decoder layers.
        linears: For each weight matrix of the op, the path from a layer to the linear module that holds it.
        site: Path from a layer to the module that the sparse one replaces.
        bypass: Paths from a layer to modules after the site whose work the sparse module does as well.
        activation: Name of the configuration's field that names the activation.
    """

    op: Op
    layers: str
    linears: Mapping[str, str]
    site: str
    bypass: tuple[str, ...] = ()
    activation: str = "hidden_act"


_LLAMA_LIKE = Family(
    op=SPARSE_GATED_FFN,
    layers="model.layers",
    linears={"w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj"},
    site="mlp",
)

# By the `model_type` of the configuration.
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "gpt_neox": Family(
        op=SPARSE_FFN,
        layers="gpt_neox.layers",
        linears={"w_in": "mlp.dense_h_to_4h", "w_out": "mlp.dense_4h_to_h"},
        site="mlp",
    ),
    "opt": Family(
        op=SPARSE_FFN,
        layers="model.decoder.layers",
        linears={"w_in": "fc1", "w_out": "fc2"},
        site="fc1",
        bypass=("activation_fn", "fc2"),
        activation="activation_function",
    ),
}

# Names in Hugging Face configurations to ours.
ACTIVATION_NAMES: dict[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def family_of(config: Any) -> Family:
    """Row of FAMILIES for a model's configuration.

    Raises:
        CladaError: The model's type is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise CladaError(
            f"neurons of model type '{config.model_type}' cannot be skipped, only those of {', '.join(FAMILIES)}; "
            "a goal of bytes skips inputs, in dense decoders of every type"
        )
    return FAMILIES[config.model_type]


def activation_of(config: Any) -> str:
    """Our name of the activation of a model's feed-forward networks.

    Raises:
        CladaError: The model's type is not in the table, or no op has its activation.
    """
    name = str(getattr(config, family_of(config).activation))
    if name not in ACTIVATION_NAMES:
        raise CladaError(f"activation '{name}' has no sparse op; known are: {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]
