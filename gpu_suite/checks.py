"""Every check of an op's kernel: against the reference, against itself, and in a CUDA graph."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch

from clada.ops import OPS
from clada.ops.record import FLOAT_TYPES, Op
from gpu_suite.device import Device
from gpu_suite.parity import Check, Expected, compared, expected, rounded


class Launch(Protocol):
    """One call of an op, made ready."""

    outputs: dict[str, torch.Tensor]

    def launch(self) -> None:
        """Launch it on torch's current stream."""

    def poison(self) -> None:
        """Fill outputs and workspace with NaN."""

    def written_outside(self) -> bool:
        """Whether memory around outputs and workspace was changed."""


class Library(Protocol):
    """What the ops are called through: the kernels themselves, or what has them."""

    @property
    def device(self) -> Device:
        """What its pointers are of."""

    def call(self, op: Op, inputs: Mapping[str, torch.Tensor], attributes: Mapping[str, str | float]) -> Launch:
        """One call of an op, made ready."""


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
    """Call an op and check what it puts out, that a repetition gives the same bits, and a CUDA graph too.

    Args:
        library: What has the op.
        op: The op.
        subject: What the checks are of.
        inputs: On the library's device.
        attributes: Of the op.
        wanted: What it must give.
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
    """Every sample case of the records, in every element type."""
    for op in ops:
        for case in op.cases():
            for name in FLOAT_TYPES:
                given = rounded(op, case, getattr(torch, name), library.device.name)
                subject = f"{op.name} {name} {case.name}"
                yield from checked_call(library, op, subject, given.tensors, case.attributes, expected(op, given))
