"""Checks of an op's kernel: against its float64 reference, against itself, in a CUDA graph, at real sizes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from clada.benchmark.exact_thresholds import exact_share
from clada.benchmark.precisions import BLOCKS
from clada.benchmark.shapes import Shape
from clada.ops import LOAD_SIGNAL, OPS, QUANTIZED_LINEAR, SPARSE_FFN, SPARSE_GATED_FFN, SPARSE_LINEAR
from clada.ops.record import FLOAT_TYPES, Array, Case, Op, evaluate
from clada.ops.torch import torch_op
from gpu_suite.device import Device
from gpu_suite.kernels import Kernels
from gpu_suite.layers import (
    Layer,
    codes_and_scales,
    float_op,
    magnitudes,
    name_of,
    random_layer,
    random_quantized_layer,
    random_x,
    selection,
    widened,
)

# How many times the error of plain torch in the same types is allowed.
_TIMES = 2.0
MOST_SEQUENCES = 8
_QUANTIZED = ("int4", "int8")
_SHARE = 0.4
# Of these sequences one is dense and one is padding, whatever the threshold.
_DENSE, _PADDING = 2, 6
# Past what is computed row by row.
_PROMPT = (2, 24)
# Products rounded to 16 bits may cancel with a bias, and what is zero then is kept by the reference and by no kernel.
_NEARLY_ZERO = 0.01


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Args:
        subject: The op, its element type and its sizes, as one line.
        what: An output, or what else must hold.
        error: The largest; for what must be equal, the number of elements that are not.
        allowed: The largest that passes.
    """

    subject: str
    what: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it holds; a NaN does not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Rounded:
    """A case as an op gets it in some element type.

    Args:
        case: The values that are left, in float64.
        tensors: The inputs, on the device.
    """

    case: Case
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Expected:
    """Expected outputs of a case.

    Args:
        outputs: Of the reference.
        plain: Of plain torch in the case's own types, with exactly the neurons or inputs that the reference keeps.
    """

    outputs: dict[str, Array]
    plain: dict[str, Array]


def rounded(op: Op, case: Case, dtype: torch.dtype, device: str) -> Rounded:
    """Round a case's inputs of type T."""
    tensors = {
        spec.name: torch.from_numpy(np.ascontiguousarray(case.inputs[spec.name])).to(
            device, dtype if spec.dtype == "T" else None
        )
        for spec in op.inputs
    }
    values = {spec.name: tensors[spec.name].double().cpu().numpy() for spec in op.inputs if spec.dtype == "T"}
    return Rounded(replace(case, inputs={**case.inputs, **values}), tensors)


def _by_token(op: Op, array: Array, name: str) -> Array:
    """An input of a feed-forward op with every token a batch of its own."""
    axes = next(spec.axes for spec in op.inputs if spec.name == name)
    return array.reshape(-1, 1, *array.shape[2:]) if axes[:2] == ("B", "S") else array


def _kept(op: Op, case: Case, outputs: Mapping[str, Array]) -> Array:
    """The neurons that the reference keeps for each token, bool[B * S, F]: those that score."""
    tokens = case.inputs["x"].shape[1]
    if tokens == 1:
        return outputs["score"] > 0
    inputs = {name: _by_token(op, array, name) for name, array in case.inputs.items()}
    inputs["pool"] = np.repeat(case.inputs["pool"], tokens, axis=0)
    score: Array = evaluate(op, replace(case, inputs=inputs))[2]
    return score > 0


def _plain(op: Op, given: Rounded, reference: Mapping[str, Array]) -> dict[str, Array]:
    attributes = given.case.attributes
    names = [spec.name for spec in op.outputs]
    # Quantized weights are rounded to the type that products are made in, as in the function body.
    dtype = given.tensors[op.inputs[0].name].dtype
    plain_op, given_tensors = float_op(op), widened(op, given.tensors, attributes, dtype)
    if plain_op in (LOAD_SIGNAL, SPARSE_LINEAR):
        plain_attributes = (attributes[attribute.name] for attribute in plain_op.attributes)
        outputs = torch_op(plain_op)(*given_tensors.values(), *plain_attributes)
        return {name: output.double().cpu().numpy() for name, output in zip(names, outputs, strict=True)}
    # A token a batch, whose pool is what the reference keeps: no rounding of torch's changes which neurons count.
    batch, tokens = given.case.inputs["x"].shape[:2]
    tensors = {
        name: tensor.reshape(batch * tokens, 1, *tensor.shape[2:]) if name in ("x", "scale") else tensor
        for name, tensor in given_tensors.items()
    }
    tensors["pool"] = torch.from_numpy(_kept(op, given.case, reference)).to(tensors["pool"].device)
    tensors["scale"] = tensors["scale"].clamp_max(0)
    outputs = torch_op(plain_op)(*tensors.values(), str(attributes["activation"]))
    y, active, score = (output.double().cpu().numpy() for output in outputs)
    return {
        "y": y.reshape(batch, tokens, -1),
        "active": active.reshape(batch, tokens),
        "score": score.reshape(batch, tokens, -1).sum(axis=1),
    }


def expected(op: Op, given: Rounded) -> Expected:
    """Expected outputs of the case, and those of plain torch."""
    outputs = dict(zip((spec.name for spec in op.outputs), evaluate(op, given.case), strict=True))
    return Expected(outputs, _plain(op, given, outputs))


def compared(op: Op, subject: str, outputs: Mapping[str, torch.Tensor], wanted: Expected) -> Iterable[Check]:
    """Check outputs: at most twice the error of plain torch in the same types, plus a floor; whole numbers exactly.

    The floor is the error that the record allows of float32 sums, relative to the output's largest magnitude. For many
    tokens kernels keep h in T, as torch does not, and the score is of its squares, whose error is twice that rounding.
    """
    for spec in op.outputs:
        out, reference = outputs[spec.name].double().cpu().numpy(), wanted.outputs[spec.name]
        if spec.dtype == "int32":
            yield Check(subject, spec.name, int((out != reference).sum()), 0)
            continue
        squares = torch.finfo(outputs["y"].dtype).eps if spec.name == "score" else 0
        floor = (op.tolerance["float32"] + squares) * np.abs(reference).max()
        allowed = _TIMES * np.abs(wanted.plain[spec.name] - reference).max() + floor
        yield Check(subject, spec.name, float(np.abs(out - reference).max()), float(allowed))


class Launch(Protocol):
    """Prepared call of an op."""

    outputs: dict[str, torch.Tensor]

    def launch(self) -> None:
        """Launch it on torch's current stream."""

    def poison(self) -> None:
        """Fill outputs and workspace with NaN."""

    def written_outside(self) -> bool:
        """Whether memory around outputs and workspace was changed."""


class Library(Protocol):
    """Library that provides the ops: the kernels themselves, or another with the same ops."""

    @property
    def device(self) -> Device:
        """Device of its pointers."""

    def call(self, op: Op, inputs: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float]) -> Launch:
        """Prepare a call of an op."""


def _bits(outputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.reshape(-1).view(torch.uint8).clone() for tensor in outputs.values()]


def _differing(one: list[torch.Tensor], other: list[torch.Tensor]) -> int:
    return sum(int((a != b).sum()) for a, b in zip(one, other, strict=True))


def checked_call(
    library: Library,
    op: Op,
    subject: str,
    inputs: Mapping[str, torch.Tensor],
    attributes: Mapping[str, str | float],
    wanted: Expected,
) -> Iterator[Check]:
    """Call an op and check its outputs, and that a repetition and a CUDA graph give the same bits.

    Args:
        library: Library that provides the op.
        op: The op.
        subject: Name of the subject of the checks.
        inputs: On the library's device.
        attributes: Attributes of the op.
        wanted: Expected outputs.
    """
    call, device = library.call(op, inputs, attributes), library.device
    call.launch()
    device.synchronize()
    yield from compared(op, subject, call.outputs, wanted)
    first = _bits(call.outputs)
    call.poison()
    call.launch()
    device.synchronize()
    yield Check(subject, "bytes that differ when repeated", _differing(first, _bits(call.outputs)), 0)
    if device.captured is not None:
        replay = device.captured(call.launch)
        call.poison()
        replay()
        device.synchronize()
        yield Check(subject, "bytes that differ in a CUDA graph", _differing(first, _bits(call.outputs)), 0)
    yield Check(subject, "written outside of outputs and workspace", int(call.written_outside()), 0)


def sample_checks(library: Library, ops: Iterable[Op] = tuple(OPS.values())) -> Iterator[Check]:
    """Check every sample case of the records, in every element type."""
    for op in ops:
        for case in op.cases():
            for name in FLOAT_TYPES:
                given = rounded(op, case, getattr(torch, name), library.device.name)
                subject = f"{op.name} {name} {case.name}"
                yield from checked_call(library, op, subject, given.tensors, case.attributes, expected(op, given))


def _given(layer: Layer, x: torch.Tensor, chosen: dict[str, torch.Tensor]) -> Rounded:
    """The layer's inputs, as the reference takes them too."""
    tensors = {"x": x, **layer.weights, **chosen}
    tensors = {spec.name: tensors[spec.name] for spec in layer.op.inputs}
    floats = {spec.name for spec in layer.op.inputs if spec.dtype == "T"}
    values = {name: (t.double() if name in floats else t).cpu().numpy() for name, t in tensors.items()}
    return Rounded(Case(layer.shape.name, values, layer.attributes), tensors)


def _decode_selection(layer: Layer, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each sequence another pool, and the same share; no threshold is near an activation."""
    threshold, scale = exact_share(magnitudes(layer, x), _SHARE)
    scale[_DENSE], scale[_PADDING] = 0, -1
    pool = np.random.default_rng(2).random((len(scale), layer.shape.neurons)) < 0.9
    pool[0] = True
    return selection(layer, threshold, scale[:, None], pool)


def _first(wanted: Expected, count: int) -> Expected:
    """Of the first sequences alone."""
    return Expected(
        *({name: array[:count] for name, array in outputs.items()} for outputs in (wanted.outputs, wanted.plain))
    )


def _subject(layer: Layer) -> str:
    return f"{layer.op.name} {name_of(layer.dtype)} {layer.shape.name} {layer.precision}"


def decode_checks(kernels: Kernels, layer: Layer) -> Iterator[Check]:
    """One token of each of up to as many sequences as are computed row by row."""
    x = random_x(layer, MOST_SEQUENCES, 1)
    given = _given(layer, x, _decode_selection(layer, x))
    wanted = expected(layer.op, given)
    for count in range(1, MOST_SEQUENCES + 1):
        inputs = {
            name: tensor[:count].contiguous() if name in ("x", "scale", "pool") else tensor
            for name, tensor in given.tensors.items()
        }
        label = f"{_subject(layer)} B{count}-S1"
        yield from checked_call(kernels, layer.op, label, inputs, layer.attributes, _first(wanted, count))


def prompt_checks(kernels: Kernels, layer: Layer) -> Iterator[Check]:
    """A prompt, which is dense, and padded on the left."""
    scale = np.zeros(_PROMPT, np.float32)
    scale[1, : _PROMPT[1] // 3] = -1
    x = random_x(layer, *_PROMPT)
    pool = magnitudes(layer, x).reshape(*_PROMPT, -1).min(axis=1) > _NEARLY_ZERO
    given = _given(layer, x, selection(layer, None, scale, pool))
    label = f"{_subject(layer)} B{_PROMPT[0]}-S{_PROMPT[1]}"
    yield from checked_call(kernels, layer.op, label, given.tensors, layer.attributes, expected(layer.op, given))


@dataclass(frozen=True)
class _Matrix:
    """A matrix [D, N] of the linear op or its quantized variant."""

    op: Op
    weights: dict[str, Array]
    attributes: dict[str, str | float]
    precision: str


def _matrices(width: int, outputs: int) -> Iterator[_Matrix]:
    w: Array = np.random.default_rng((width, outputs)).standard_normal((width, outputs)) / np.sqrt(width)
    yield _Matrix(SPARSE_LINEAR, {"w": w}, {}, "")
    for precision in _QUANTIZED:
        blocks, generator = BLOCKS[precision], torch.Generator().manual_seed(0)
        codes, scales = codes_and_scales(width, outputs, width, blocks, generator)
        attributes: dict[str, str | float] = {"bits": blocks.bits, "block_size": blocks.block_size}
        yield _Matrix(QUANTIZED_LINEAR, {"w": codes.numpy(), "s": scales.numpy()}, attributes, f" {precision}")


def _linear_case(matrix: _Matrix, width: int, batch: int, tokens: int) -> Case:
    """A matrix of `width` inputs, of which each token keeps others; some tokens are dense, or padding."""
    rng = np.random.default_rng([batch, tokens])
    scale = np.ones(batch * tokens, np.float32)
    scale[_DENSE::MOST_SEQUENCES], scale[_PADDING::MOST_SEQUENCES] = 0, -1
    inputs: dict[str, Array] = {
        "x": rng.standard_normal((batch, tokens, width)),
        **matrix.weights,
        "threshold": np.asarray(rng.uniform(0.5, 1.2, width), np.float32),
        "scale": scale.reshape(batch, tokens),
    }
    return Case(f"B{batch}-S{tokens}", inputs, matrix.attributes)


def linear_checks(kernels: Kernels, shape: Shape, dtype: torch.dtype) -> Iterator[Check]:
    """A wide and a narrow matrix, plain and quantized: row by row for one sequence and the most, and as a product."""
    for width, outputs in ((shape.hidden, shape.neurons), (shape.neurons, shape.hidden)):
        for matrix in _matrices(width, outputs):
            op, sizes = matrix.op, f"{width}x{outputs}{matrix.precision}"
            for batch, tokens in ((1, 1), (MOST_SEQUENCES, 1), _PROMPT):
                case = _linear_case(matrix, width, batch, tokens)
                given = rounded(op, case, dtype, kernels.device.name)
                subject = f"{op.name} {name_of(dtype)} {shape.name} {sizes} {case.name}"
                wanted = expected(op, given)
                yield from checked_call(kernels, op, subject, given.tensors, case.attributes, wanted)


def _load_case(vocabulary: int) -> Case:
    rng = np.random.default_rng(vocabulary)
    inputs: dict[str, Array] = {
        "logits": 3 * rng.standard_normal((MOST_SEQUENCES, vocabulary)),
        "token": rng.integers(0, vocabulary, MOST_SEQUENCES),
        "surprisal_knots": np.sort(rng.uniform(0, 2 * np.log(vocabulary), 33)).astype(np.float32),
        "entropy_knots": np.sort(rng.uniform(0, np.log(vocabulary), 33)).astype(np.float32),
        "scale_knots": np.array([1.3, 1.2, 1.0, 0.8, 0.8], np.float32),
    }
    return Case(f"B{MOST_SEQUENCES}-V{vocabulary}", inputs, {"surprisal_weight": 0.5})


def checked_layers(op: Op, shape: Shape, dtype: torch.dtype, device: str) -> Iterator[Layer]:
    """The layer of a feed-forward op that is checked, and its quantized variants, one after the other."""
    yield random_layer(op, shape, dtype, device)
    for precision in _QUANTIZED:
        yield random_quantized_layer(op, shape, dtype, precision, device)


def real_checks(kernels: Kernels, shapes: Sequence[Shape]) -> Iterator[Check]:
    """Every op at the sizes of these models, in every element type."""
    for name in FLOAT_TYPES:
        dtype = getattr(torch, name)
        for shape in shapes:
            for op in (SPARSE_GATED_FFN, SPARSE_FFN):
                for layer in checked_layers(op, shape, dtype, kernels.device.name):
                    yield from decode_checks(kernels, layer)
                    yield from prompt_checks(kernels, layer)
            yield from linear_checks(kernels, shape, dtype)
        for vocabulary in sorted({shape.vocabulary for shape in shapes if shape.model}):
            case = _load_case(vocabulary)
            given = rounded(LOAD_SIGNAL, case, dtype, kernels.device.name)
            subject = f"{LOAD_SIGNAL.name} {name} {case.name}"
            wanted = expected(LOAD_SIGNAL, given)
            yield from checked_call(kernels, LOAD_SIGNAL, subject, given.tensors, case.attributes, wanted)
