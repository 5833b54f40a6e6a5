"""Paired differences of two subjects on the same sequences."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clada.errors import CladaError
from clada.evaluation.result import read_result
from clada.evaluation.statistics import Estimate, bootstrap, difference, relative_difference

# Of "data": what decides the sequences, and the questions made from them.
_SAME = ("sha256", "sequences", "prompt_tokens", "scored_tokens", "generation_tokens", "seed")


@dataclass(frozen=True)
class PairedDifference:
    """Difference of a column's mean, first less second.

    Args:
        difference: In the column's unit.
        relative: As a share of the second's mean; None where that is zero.
    """

    difference: Estimate
    relative: Estimate | None


def paired_difference(first: Path, second: Path, column: str) -> PairedDifference:
    """Compare two results, sequence by sequence.

    Args:
        first: The JSON of one evaluation.
        second: That of the other.
        column: A name of their "sequences", such as "kl" or "disagreement".

    Raises:
        CladaError: A file is not a result, the two are not of the same sequences, or lack the column.
    """
    ours, theirs = read_result(first), read_result(second)
    for name in _SAME:
        if ours["data"][name] != theirs["data"][name]:
            raise CladaError(
                f"{first} and {second} are not of the same sequences: "
                f"{name} is {ours['data'][name]} in one, {theirs['data'][name]} in the other"
            )
    for path, result in ((first, ours), (second, theirs)):
        if column not in result["sequences"]:
            raise CladaError(f"{path} has no column '{column}'; it has {', '.join(result['sequences'])}")
    columns = [np.array(result["sequences"][column], np.float64) for result in (ours, theirs)]
    seed = ours["data"]["seed"]
    absolute = bootstrap(difference, columns, seed)
    if absolute is None:
        raise CladaError(f"'{column}' has no value in {first} or {second}")
    return PairedDifference(absolute, bootstrap(relative_difference, columns, seed))
