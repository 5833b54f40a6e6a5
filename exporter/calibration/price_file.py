"""File of a calibration by price: made once, it serves an artifact of any share of bytes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clada.contract.files import write
from clada.contract.typed_json import Within, WrongValueError, load, parse, plain
from clada.errors import CladaError
from clada.exporter.calibration.price import BINS, Worth
from clada.exporter.calibration.price_calibration import PriceCalibration, Rung
from clada.exporter.calibration.probe import KNOTS
from clada.exporter.model.anticipation import Anticipation, from_named, named_tensors
from clada.exporter.model.hashes import tensors_hash
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.products import Product
from clada.ops import graph_names

_FORMAT = "clada calibration by price, 2"
_LOAD_MAP = tuple(field.name for field in fields(LoadMap) if field.name not in ("surprisal_weight", "token_scale"))


@dataclass(frozen=True)
class CalibratedOn:
    """Provenance of a calibration: its model, text and settings.

    Args:
        model: SHA-256, in hex, of the model's weights.
        data: Name of the text.
        data_sha256: SHA-256 of that text.
        settings: SHA-256 of what else it depends on; empty where any export may take it.
    """

    model: str
    data: str
    data_sha256: str
    settings: str


@dataclass(frozen=True)
class _ProductSizes:
    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class _Probe:
    product: Annotated[int, Within(0, 2**31 - 1)]
    explained: float


@dataclass(frozen=True)
class _Content:
    """Content of a file, except its tensors."""

    of: CalibratedOn
    products: tuple[_ProductSizes, ...]
    rungs: tuple[Rung, ...]
    surprisal_weight: Annotated[float, Within(0, 1)]
    tokens: Annotated[int, Within(1, 2**53)]
    prompt_tokens: Annotated[int, Within(0, 2**53)]
    gains: Mapping[str, float]
    probes: tuple[_Probe, ...]

    def __post_init__(self) -> None:
        efforts, shares = ([getattr(rung, name) for rung in self.rungs] for name in ("effort", "read"))
        if len(efforts) < 2 or efforts[0] != 0 or any(b <= a for a, b in pairwise(efforts)):
            raise WrongValueError("rungs must be two or more whose efforts rise from 0")
        if any(b >= a for a, b in pairwise(shares)) or not 0 <= shares[-1] <= shares[0] <= 1 + 1e-6:
            raise WrongValueError("rungs must read shares that fall")
        if any(len(rung.kept) != len(self.products) for rung in self.rungs):
            raise WrongValueError("rungs must tell of each product")
        sites = [probe.product for probe in self.probes]
        if sorted(set(sites)) != sites or not all(site < len(self.products) for site in sites):
            raise WrongValueError("probes must be of different products, in their order")


def write_price_calibration(path: Path, calibration: PriceCalibration, of: CalibratedOn) -> None:
    """Write a calibration.

    Raises:
        CladaError: The file cannot be written.
    """
    tensors = {name: getattr(calibration.load_map, name) for name in _LOAD_MAP}
    for index, worth in enumerate(calibration.worths):
        tensors |= {f"factor.{index}": worth.factor, f"counts.{index}": worth.counts}
    tensors |= named_tensors(calibration.anticipations)
    content = _Content(
        of=of,
        products=_sizes([worth.product for worth in calibration.worths]),
        rungs=tuple(calibration.rungs),
        surprisal_weight=calibration.load_map.surprisal_weight,
        tokens=calibration.tokens,
        prompt_tokens=calibration.prompt_tokens,
        gains=calibration.gains,
        probes=tuple(
            _Probe(anticipation.site, explained)
            for anticipation, explained in zip(calibration.anticipations, calibration.explained, strict=True)
        ),
    )
    text = json.dumps(plain(content))
    metadata = {"format": _FORMAT, "values": text, "content": tensors_hash(text, tensors)}
    write(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata))


def _sizes(products: Sequence[Product]) -> tuple[_ProductSizes, ...]:
    return tuple(_ProductSizes(product.name, product.inputs, product.outputs) for product in products)


def read_price_calibration(path: Path, products: Sequence[Product]) -> tuple[PriceCalibration, CalibratedOn]:
    """Read a calibration of a model.

    Args:
        path: Path of the file.
        products: Products of the model.

    Raises:
        CladaError: The file cannot be read, is damaged or no calibration by price, holds what makes no sense, or is of
            other products.
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
    try:
        content = parse(_Content, load(metadata["values"].encode()))
        if content.products != _sizes(products):
            raise CladaError(f"{path} is the calibration of another model: its products are not this model's")
        worths = [_worth(tensors, index, product) for index, product in enumerate(products)]
        knots = {name: _numbers(tensors, name, torch.float32, None) for name in _LOAD_MAP}
        anticipations = [_anticipation(tensors, probe.product, products) for probe in content.probes]
    except WrongValueError as error:
        raise CladaError(
            f"{path} is no calibration file that clada wrote: {error}; run clada calibrate again"
        ) from error
    calibration = PriceCalibration(
        worths=worths,
        load_map=LoadMap(**knots, surprisal_weight=content.surprisal_weight),
        rungs=list(content.rungs),
        tokens=content.tokens,
        prompt_tokens=content.prompt_tokens,
        gains=dict(content.gains),
        anticipations=anticipations,
        explained=[probe.explained for probe in content.probes],
    )
    return calibration, content.of


def _worth(tensors: Mapping[str, Tensor], index: int, product: Product) -> Worth:
    factor = _numbers(tensors, f"factor.{index}", torch.float64, product.inputs)
    return Worth(product, factor, _numbers(tensors, f"counts.{index}", torch.float64, BINS))


def _anticipation(tensors: Mapping[str, Tensor], site: int, products: Sequence[Product]) -> Anticipation:
    names = graph_names.anticipation(site)
    sizes = (products[site].inputs,), (), (), (KNOTS,), (KNOTS,)
    values = [
        _numbers(tensors, name, torch.float32, *size, least=-math.inf) for name, size in zip(names, sizes, strict=True)
    ]
    (anticipation,) = from_named([site], dict(zip(names, values, strict=True)).__getitem__)
    if (anticipation.knots.diff() < 0).any() or (anticipation.factors.diff() > 0).any():
        raise WrongValueError(f"the knots of the probe at product {site} fall, or its factors rise")
    if (anticipation.factors <= 0).any():
        raise WrongValueError(f"factors of the probe at product {site} are not above 0")
    return anticipation


def _numbers(
    tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, *size: int | None, least: float = 0
) -> Tensor:
    """Tensor of the file, checked to be of this size (None is any), finite, and nowhere below the least."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or (None not in size and tensor.shape != size):
        raise WrongValueError(f"{name} is missing, or not of the type and size that it must be")
    if not bool((torch.isfinite(tensor) & (tensor >= least)).all()):
        raise WrongValueError(f"{name} holds a value below {least:g}, or no finite number")
    return tensor
