"""Checks at the sizes of real models, for every number of sequences that decode together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clada.benchmark.precisions import BLOCKS
from clada.benchmark.shapes import Shape
from clada.benchmark.thresholds import exact_share
from clada.ops import LOAD_SIGNAL, QUANTIZED_LINEAR, SPARSE_FFN, SPARSE_GATED_FFN, SPARSE_LINEAR
from clada.ops.record import FLOAT_TYPES, Array, Case, Op
from gpu_suite.checks import checked_call
from gpu_suite.layer_data import (
    Layer,
    codes_and_scales,
    magnitudes,
    name_of,
    random_layer,
    random_quantized_layer,
    random_x,
    selection,
)
from gpu_suite.library import Kernels
from gpu_suite.parity import Check, Expected, Rounded, expected, rounded

MOST_SEQUENCES = 8
_QUANTIZED = ("int4", "int8")
_SHARE = 0.4
# Of these sequences one is dense and one is padding, whatever the threshold.
_DENSE, _PADDING = 2, 6
# Past what is computed row by row.
_PROMPT = (2, 24)
# Products rounded to 16 bits may cancel with a bias, and what is zero then is kept by the reference and by no kernel.
_NEARLY_ZERO = 0.01


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
    """A matrix [D, N] of the linear op or its quantised variant."""

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
    """A wide and a narrow matrix, plain and quantised: row by row for one sequence and the most, and as a product."""
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


def layers(op: Op, shape: Shape, dtype: torch.dtype, device: str) -> Iterator[Layer]:
    """The layer of a feed-forward op that is checked, and its quantised variants, one after the other."""
    yield random_layer(op, shape, dtype, device)
    for precision in _QUANTIZED:
        yield random_quantized_layer(op, shape, dtype, precision, device)


def real_checks(kernels: Kernels, shapes: Sequence[Shape]) -> Iterator[Check]:
    """Every op at the sizes of these models, in every element type."""
    for name in FLOAT_TYPES:
        dtype = getattr(torch, name)
        for shape in shapes:
            for op in (SPARSE_GATED_FFN, SPARSE_FFN):
                for layer in layers(op, shape, dtype, kernels.device.name):
                    yield from decode_checks(kernels, layer)
                    yield from prompt_checks(kernels, layer)
            yield from linear_checks(kernels, shape, dtype)
        for vocabulary in sorted({shape.vocabulary for shape in shapes if shape.model}):
            case = _load_case(vocabulary)
            given = rounded(LOAD_SIGNAL, case, dtype, kernels.device.name)
            subject = f"{LOAD_SIGNAL.name} {name} {case.name}"
            wanted = expected(LOAD_SIGNAL, given)
            yield from checked_call(kernels, LOAD_SIGNAL, subject, given.tensors, case.attributes, wanted)
