"""Whether an op computes what its float64 reference does, as exactly as its types allow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from clada.ops import LOAD_SIGNAL, SPARSE_LINEAR
from clada.ops.record import Array, Case, Op, evaluate
from clada.ops.torch import torch_op
from gpu_suite.widened import float_op, widened

# How many times the error of plain torch in the same types is allowed.
_TIMES = 2.0


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
    """What a case must give.

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
    # Quantised weights are rounded to the type that products are made in, as in the function body.
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
    """What the case must give, and what plain torch makes of it."""
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
