"""Manifest: an artifact's description of itself, with every key and the values it may have."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Literal, get_args

from clada.contract.dial import DialPoint
from clada.contract.sealed_json import sealed, unsealed
from clada.contract.typed_json import Within, WrongValueError, parse, plain, shown
from clada.errors import CladaError
from clada.ops import LOAD_SIGNAL, OPS, QUANTIZED, QUANTIZED_LINEAR, SPARSE_LINEAR, VERSION
from clada.ops.block_quantization import BITS, BLOCK_SIZES

FORMAT_VERSION = 2
MANIFEST_NAME = "clada.json"

_Count = Annotated[int, Within(0, 2**53)]
_Size = Annotated[int, Within(1, 2**31 - 1)]
# What was measured as a share may round to a little more than all.
_Share = Annotated[float, Within(-1e-6, 1 + 1e-6)]
_Positive = Annotated[float, Within(0, 1e30)]
_Number = Annotated[float, Within(-1e30, 1e30)]
# Bytes of a piece: neither so many pieces that they take longer than the file, nor so few that one thread does all.
_PieceBytes = Annotated[int, Within(1 << 20, 1 << 30)]

_HASH = re.compile("[0-9a-f]{64}")
_RELEASE = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")
_LONGEST_NAME = 255
GoalName = Literal["target_sparsity", "ffn_cost", "error_budget", "bytes"]
GOALS: tuple[GoalName, ...] = get_args(GoalName)


@dataclass(frozen=True)
class ModelSection:
    """Model that was exported.

    Args:
        family: The model's type, as its configuration names it.
        layers: Number of layers.
        hidden_size: Width of the hidden state.
        neurons: Number of neurons of each layer; none where inputs are skipped.
        vocabulary_size: Size of the vocabulary, as in its logits.
        context_length: The most tokens it reads.
        parameters: As the checkpoint has them.
        dtype: T of the graph.
        opset: Version of the standard ops.
        weights: Type of matrices and embedding where that is narrower; None where it is dtype, or they are quantized.
    """

    family: str
    layers: _Size
    hidden_size: _Size
    neurons: tuple[_Size, ...]
    vocabulary_size: _Size
    context_length: _Size
    parameters: _Count
    dtype: Literal["float32", "float16"]
    opset: _Size
    weights: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and (self.dtype != "float32" or self.neurons):
            raise WrongValueError(f"weights is {self.weights!r}, which is for float32 and inputs that are skipped")
        if self.neurons and len(self.neurons) != self.layers:
            raise WrongValueError(f"neurons is of {len(self.neurons)} layers, and layers is {self.layers}")

    @property
    def weight_type(self) -> str:
        """Type of the matrices where they are not quantized."""
        return self.weights or self.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight where they are not quantized."""
        return 4 if self.weight_type == "float32" else 2


@dataclass(frozen=True)
class Policy:
    """Rules that decide, in decode, which neurons a token computes, or which inputs of every matrix it reads.

    Args:
        thresholds: Weight of a neuron's activation before it is compared: "sensitivity" (the cost of losing it to
            the model's output), "activation" (1: the plain activation), or empty: no thresholds. "price": not neurons,
            but the inputs of all matrices are skipped, those whose loss costs the output less than their bytes do.
        allocation: Share the sparsity out among the layers by what it costs there; otherwise all have the same.
        pool: Text whose use of each neuron decides what a layer may use: "blended" (the prompt's and the calibration
            text's), "prompt", "calibration", or empty: every neuron may be used.
        compensation: Add the mean of what is dropped, measured on calibration text, to each layer's output.
        scale: Signal that loosens the thresholds from token to token: "load", "token" (a table by token id) or empty.
        reanalysis: Open the pool where the load is highest.
        anticipation: Refine the scale by a linear probe of an early layer's input.
    """

    thresholds: Literal["", "activation", "sensitivity", "price"] = ""
    allocation: bool = False
    pool: Literal["", "prompt", "calibration", "blended"] = ""
    compensation: bool = False
    scale: Literal["", "load", "token"] = ""
    reanalysis: bool = False
    anticipation: bool = False


@dataclass(frozen=True)
class PolicySection:
    """Policy that made the model sparse; one of the goals is given.

    Args:
        name: Name of the policy.
        parts: Parts of the policy.
        seed: Decided which parts of the text were used.
        target_sparsity: See CalibrationConfig, as are the following.
        ffn_cost: See CalibrationConfig.
        error_budget: See CalibrationConfig.
        bytes: See CalibrationConfig.
    """

    name: str
    parts: Policy
    seed: _Count
    target_sparsity: _Share | None = None
    ffn_cost: _Share | None = None
    error_budget: _Positive | None = None
    bytes: _Share | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in GOALS) != 1:
            raise WrongValueError(f"{', '.join(GOALS)}: one of them must be given, and no other")

    @property
    def goal(self) -> tuple[GoalName, float]:
        """Name and value of the goal."""
        return next((name, value) for name in GOALS if (value := getattr(self, name)) is not None)


@dataclass(frozen=True)
class LayerCalibration:
    """Calibration of one layer, measured on the calibration tokens.

    Args:
        realised: Share of neurons that were not computed; spelled as the files have it.
        pool: Share of neurons that the pool holds.
        median_threshold: Median threshold of the layer's neurons.
    """

    realised: _Share
    pool: _Share
    median_threshold: Annotated[float, Within(0, 3.5e38)]


@dataclass(frozen=True)
class AnticipationSection:
    """Probe of the hidden state.

    Args:
        layer: Index of the layer whose input it reads.
        factors: Factor on the scale at each of its knots.
        r2: Share of the variance of a token's log divergence that it explains; None where that was not measured.
    """

    layer: Annotated[int, Within(0, 2**31 - 1)]
    factors: tuple[_Positive, ...]
    r2: _Number | None


@dataclass(frozen=True)
class CalibrationSection:
    """Calibration text, and the measurements on it.

    Args:
        data: Name of the text.
        data_sha256: SHA-256 of that text; empty where there was none.
        tokens: Number of measured tokens, without the dense prompts.
        prompt_tokens: Number of tokens of each row that were read densely.
        divergence_nats: KL divergence from the dense model, a token.
        agreement: Share of tokens whose most likely successor is the dense model's.
        ffn_cost: Share of the feed-forward weights' bytes that were read; None where inputs are skipped.
        layers: Calibration of each layer; none where inputs are skipped.
        scale_knots: The factor on the thresholds at load 0, ..., 1.
        reanalysis_load: The load from which the pool opens; above 1 where none does.
        surprisal_weight: Share of surprisal in the load.
        anticipation: None where there is no probe, or inputs are skipped, whose section tells of theirs.
        gains: Share of the divergence that the load's map and anticipation save by themselves.
    """

    data: str
    data_sha256: str
    tokens: _Count
    prompt_tokens: _Count
    divergence_nats: _Number
    agreement: _Share
    ffn_cost: _Share | None
    layers: tuple[LayerCalibration, ...]
    scale_knots: tuple[_Positive, ...]
    reanalysis_load: Annotated[float, Within(0, 2)]
    surprisal_weight: _Share
    anticipation: AnticipationSection | None
    gains: Mapping[str, _Number]

    def __post_init__(self) -> None:
        knots = self.scale_knots
        if len(knots) < 2 or any(later > earlier for earlier, later in pairwise(knots)):
            raise WrongValueError(f"scale_knots is {shown(list(knots))}, and must be two or more that do not rise")


@dataclass(frozen=True)
class ProductSection:
    """One product, measured on the calibration tokens.

    Args:
        name: Its layers, by their paths in the model.
        inputs: D.
        outputs: N, the weights of a row.
        kept: Share of its inputs that were not skipped.
        median_threshold: Median threshold of its inputs.
    """

    name: str
    inputs: _Size
    outputs: _Size
    kept: _Share
    median_threshold: Annotated[float, Within(0, 3.5e38)]


@dataclass(frozen=True)
class ProbeSection:
    """Probe of a product's input, whose factor scales the thresholds of that product and of those after it.

    Args:
        product: Its index.
        factors: Factor on the scale at each of its knots.
        r2: Share of the variance of a token's log divergence that it explains.
    """

    product: Annotated[int, Within(0, 2**31 - 1)]
    factors: tuple[_Positive, ...]
    r2: _Number


@dataclass(frozen=True)
class InputsSection:
    """Settings by which inputs are skipped.

    Args:
        price: Least worth of a weight that is read, nats.
        products: All that a token is multiplied with, in the order of the graph.
        dial: Measurements at other efforts, from the lowest.
        probes: Of inputs that tell how hard a token is, in the order of the products.
    """

    price: Annotated[float, Within(0, 1e30)]
    products: tuple[ProductSection, ...]
    dial: tuple[DialPoint, ...]
    probes: tuple[ProbeSection, ...] = ()

    def __post_init__(self) -> None:
        if not self.products:
            raise WrongValueError("products is empty")
        efforts, shares = ([getattr(point, name) for point in self.dial] for name in ("effort", "bytes"))
        if 1 not in efforts or efforts[0] != 0 or any(b <= a for a, b in pairwise(efforts)):
            raise WrongValueError(f"dial has the efforts {shown(efforts)}, and must rise from 0, with 1 among them")
        if any(b >= a for a, b in pairwise(shares)):
            raise WrongValueError(f"dial reads the shares {shown(shares)}, and they must fall")
        probed = [probe.product for probe in self.probes]
        if any(b <= a for a, b in pairwise(probed)) or any(product >= len(self.products) for product in probed):
            raise WrongValueError(f"probes are at the products {shown(probed)} of {len(self.products)}, and must rise")

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of inputs of each product."""
        return tuple(product.inputs for product in self.products)

    @property
    def row_shares(self) -> list[float]:
        """Share of all products' weights that is in one row of each product."""
        total = sum(product.inputs * product.outputs for product in self.products)
        return [product.outputs / total for product in self.products]


@dataclass(frozen=True)
class CheckSection:
    """One comparison of verification.

    Args:
        name: Name of the compared quantity.
        required: The tolerance at which it just passes.
        tolerance: The one that it had to pass at.
    """

    name: str
    required: _Positive
    tolerance: _Positive


@dataclass(frozen=True)
class PiecesSection:
    """Hashes of the pieces of large files, which several processors check in parallel.

    Args:
        bytes: Size of a piece.
        files: For each file its pieces' SHA-256, in hex.
    """

    bytes: _PieceBytes
    files: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for name, hashes in self.files.items():
            for digest in hashes:
                _check_hash(f"files.{name}", digest)


@dataclass(frozen=True)
class QuantizationSection:
    """Format of the quantized weights.

    Args:
        bits: Bits per weight.
        block_size: Weights per scale.
        method: Method of rounding.
        feed_forward: Matrices of the feed-forward networks.
        linears: Paths of other matrices.
    """

    bits: int
    block_size: int
    method: Literal["rtn", "gptq"]
    feed_forward: tuple[str, ...]
    linears: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, choices in (("bits", BITS), ("block_size", BLOCK_SIZES)):
            if getattr(self, name) not in choices:
                raise WrongValueError(
                    f"{name} is {getattr(self, name)}; this release of clada knows {', '.join(map(str, choices))}"
                )


@dataclass(frozen=True)
class PoolSection:
    """Sizes and prior of the pools; the tensors are in a file of their own.

    Args:
        sizes: For each layer, how many neurons a pool holds.
        prior_tokens: Number of tokens of its own text that weigh as much as the prior; None for the prior alone.
    """

    sizes: tuple[_Size, ...]
    prior_tokens: Annotated[float, Within(0, 1e12)] | None


@dataclass(frozen=True)
class InPlaceSection:
    """Graph with an in-place cache.

    Args:
        onnxruntime: The release of ONNX Runtime, "major.minor", from which it gives the right results.
        fixed_shapes: Whether it takes a mask longer than the text, so that decode's shapes stay.
    """

    onnxruntime: str
    fixed_shapes: bool

    def __post_init__(self) -> None:
        if not _RELEASE.fullmatch(self.onnxruntime):
            raise WrongValueError(f"onnxruntime is {shown(self.onnxruntime)}, and must be a release such as '1.24'")


@dataclass(frozen=True)
class Manifest:
    """Content of clada.json.

    Args:
        model: Model that was exported.
        policy: Policy that made it sparse.
        calibration: Calibration text, and the measurements on it.
        ops: Ours in the graph, each with its version.
        verification: Results of verification.
        tools: Releases of the packages that made it.
        files: SHA-256, in hex, of every other file.
        pieces: Of the large ones among them; None where none is large.
        quantization: None where weights are not quantized.
        pool: None where every neuron may be used.
        in_place_cache: None where there is no graph with an in-place cache.
        inputs: None where neurons are skipped.
        format_version: Version of this file's format.
    """

    format_version: int = field(default=FORMAT_VERSION, kw_only=True)
    model: ModelSection
    policy: PolicySection
    calibration: CalibrationSection
    ops: Mapping[str, int]
    verification: tuple[CheckSection, ...]
    tools: Mapping[str, str]
    files: Mapping[str, str]
    pieces: PiecesSection | None = None
    quantization: QuantizationSection | None = None
    pool: PoolSection | None = None
    in_place_cache: InPlaceSection | None = None
    inputs: InputsSection | None = None

    def __post_init__(self) -> None:
        self._check_ops()
        neurons, layers = self.model.neurons, len(self.calibration.layers)
        if bool(neurons) == (self.inputs is not None):
            raise WrongValueError("model.neurons and inputs: one of them must be given, and not both")
        if layers != len(neurons):
            raise WrongValueError(f"calibration.layers has {layers} layers, and model.neurons {len(neurons)}")
        if (self.calibration.ffn_cost is None) != (self.inputs is not None):
            raise WrongValueError("calibration.ffn_cost does not go with what is skipped")
        probe = self.calibration.anticipation
        if probe is not None and probe.layer >= layers:
            raise WrongValueError(f"calibration.anticipation.layer is {probe.layer}, and there are {layers} layers")
        if self.pool is not None:
            sizes = self.pool.sizes
            if len(sizes) != layers or any(size > n for size, n in zip(sizes, neurons, strict=True)):
                raise WrongValueError(
                    f"pool.sizes is {shown(list(sizes))}, which does not fit layers of {shown(list(neurons))} neurons"
                )
        for name, digest in self.files.items():
            _check_name(name)
            _check_hash(f"files.{name}", digest)
        for name in self.pieces.files if self.pieces is not None else ():
            if name not in self.files:
                raise WrongValueError(f"pieces.files names {shown(name)}, which files does not")

    def _check_ops(self) -> None:
        for name, version in self.ops.items():
            if name not in OPS or version != VERSION:
                raise WrongValueError(
                    f"ops names {shown(name)} version {shown(version)}, which this release of clada does not know"
                )
        if LOAD_SIGNAL.name not in self.ops or len(self.ops) != 2:
            raise WrongValueError(
                f"ops is {shown(list(self.ops))}, and must name {LOAD_SIGNAL.name} and one op that skips"
            )
        if any(op.name in self.ops for op in (SPARSE_LINEAR, QUANTIZED_LINEAR)) != (self.inputs is not None):
            raise WrongValueError("inputs does not go with the ops it names")
        if any(op.name in self.ops for op in QUANTIZED.values()) != (self.quantization is not None):
            raise WrongValueError("quantization does not go with the ops it names")
        if self.quantization is not None and self.model.weights is not None:
            raise WrongValueError("quantization and model.weights: no more than one of them may be given")

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of neurons or inputs of each sparse site."""
        return self.model.neurons if self.inputs is None else self.inputs.widths

    @property
    def probes(self) -> dict[int, tuple[float, ...]]:
        """Factors on the scale at the knots of each probe, by the site that has it."""
        probe = self.calibration.anticipation
        if self.inputs is not None:
            return {probe.product: probe.factors for probe in self.inputs.probes}
        return {} if probe is None else {probe.layer: probe.factors}

    @property
    def sparse_op(self) -> str:
        """Name of the op that skips neurons of the feed-forward networks, or inputs of the products."""
        return next(name for name in self.ops if name != LOAD_SIGNAL.name)


def _check_name(name: str) -> None:
    plain_name = PurePosixPath(name).name == name and PureWindowsPath(name).name == name
    if not plain_name or name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise WrongValueError(f"files names {shown(name)}, which is not in the artifact's own folder")


def _check_hash(key: str, digest: str) -> None:
    if not _HASH.fullmatch(digest):
        raise WrongValueError(f"{key} is {shown(digest)}, and must be a SHA-256 in hex")


def manifest_bytes(manifest: Manifest) -> bytes:
    """Serialize a manifest."""
    return sealed(plain(manifest))


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Read a manifest, and check it against its own hash and every value in it.

    Args:
        content: Content of the file.
        path: Path of the file, for error messages.

    Raises:
        CladaError: It is damaged, of another version, or a key or value of it is not what it must be.
    """
    found = unsealed(content, path, FORMAT_VERSION, "export the model again")
    try:
        return parse(Manifest, found)
    except WrongValueError as error:
        raise CladaError(f"{path}: {error}; export the model again") from error
