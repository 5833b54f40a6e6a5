"""A calibration by price in a file: made once, it serves an artefact of any share of bytes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clada.exporter.decoder import LoadMap
from clada.exporter.output import write
from clada.exporter.price import Worth
from clada.exporter.price_calibration import PriceCalibration, Rung
from clada.exporter.products import Product
from clada.plugins.errors import CladaError

_FORMAT = "clada calibration by price, 1"
_LOAD_MAP = tuple(field.name for field in fields(LoadMap) if field.name not in ("surprisal_weight", "token_scale"))


@dataclass(frozen=True)
class CalibratedOn:
    """What a calibration was made of.

    Args:
        model: SHA-256, in hex, of the model's weights.
        data: Name of the text.
        data_sha256: Of that text.
        settings: What else it depends on, as text.
    """

    model: str
    data: str
    data_sha256: str
    settings: str


def model_hash(model: Any) -> str:
    """SHA-256, in hex, of the names, types and values of a model's weights."""
    return tensors_hash("", model.state_dict())


def tensors_hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of a text and of tensors by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_price_calibration(path: Path, calibration: PriceCalibration, of: CalibratedOn) -> None:
    """Write a calibration.

    Raises:
        CladaError: The file cannot be written.
    """
    tensors = {name: getattr(calibration.load_map, name) for name in _LOAD_MAP}
    for index, worth in enumerate(calibration.worths):
        tensors |= {f"factor.{index}": worth.factor, f"counts.{index}": worth.counts}
    values = {
        "of": asdict(of),
        "products": [[worth.product.name, worth.product.inputs, worth.product.outputs] for worth in calibration.worths],
        "rungs": [asdict(rung) for rung in calibration.rungs],
        "surprisal_weight": calibration.load_map.surprisal_weight,
        "tokens": calibration.tokens,
        "prompt_tokens": calibration.prompt_tokens,
        "gains": calibration.gains,
    }
    text = json.dumps(values)
    metadata = {"format": _FORMAT, "values": text, "content": tensors_hash(text, tensors)}
    write(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata))


def read_price_calibration(path: Path, products: Sequence[Product]) -> tuple[PriceCalibration, CalibratedOn]:
    """Read a calibration of a model.

    Args:
        path: Of the file.
        products: Of the model.

    Raises:
        CladaError: The file cannot be read, is damaged or no calibration by price, or is of other products.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except OSError as error:
        raise CladaError(f"cannot read the calibration {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CladaError(f"{path} is no calibration file: {error}; make one by clada calibrate") from error
    if metadata.get("format") != _FORMAT:
        raise CladaError(f"{path} is no calibration file of this release; make one by clada calibrate")
    if tensors_hash(metadata.get("values", ""), tensors) != metadata.get("content"):
        raise CladaError(f"{path} does not match its own hash: it was damaged or changed; run clada calibrate again")
    values = json.loads(metadata["values"])
    ours = [[product.name, product.inputs, product.outputs] for product in products]
    if values["products"] != ours:
        raise CladaError(f"{path} is the calibration of another model: its products are not this model's")
    worths = [
        Worth(product, tensors[f"factor.{index}"], tensors[f"counts.{index}"]) for index, product in enumerate(products)
    ]
    calibration = PriceCalibration(
        worths=worths,
        load_map=LoadMap(**{name: tensors[name] for name in _LOAD_MAP}, surprisal_weight=values["surprisal_weight"]),
        rungs=[Rung(**rung) for rung in values["rungs"]],
        tokens=values["tokens"],
        prompt_tokens=values["prompt_tokens"],
        gains=values["gains"],
    )
    return calibration, CalibratedOn(**values["of"])
