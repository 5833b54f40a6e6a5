"""Table of every token's cost, as `clada eval --tokens` writes it."""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clada.errors import CladaError


@dataclass(frozen=True)
class TokenTable:
    """Table with one row per token that was read in decode; n tokens, L layers.

    Args:
        sequence: i32[n], which text it is of.
        position: i32[n], its place in that text.
        token: i32[n], its id.
        surprisal: f32[n], of the token, in nats.
        entropy: f32[n], of the distribution it was drawn from, in nats.
        load: f32[n], the load signal, in [0, 1].
        kl: f32[n], divergence from the dense model's distribution of the token after it, in nats.
        agrees: bool[n], whether both models think the same token likeliest there.
        active: i32[n, L], neurons computed.
        pool: i32[n, L], neurons that the layer was allowed.
        neurons: i32[L], all of them.
    """

    sequence: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]
    surprisal: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    load: npt.NDArray[np.float32]
    kl: npt.NDArray[np.float32]
    agrees: npt.NDArray[np.bool_]
    active: npt.NDArray[np.int32]
    pool: npt.NDArray[np.int32]
    neurons: npt.NDArray[np.int32]


def _check_shapes(table: TokenTable, path: Path) -> None:
    tokens, layers = len(table.token), len(table.neurons)
    for field in fields(table):
        shape = {"active": (tokens, layers), "pool": (tokens, layers), "neurons": (layers,)}.get(field.name, (tokens,))
        found = getattr(table, field.name).shape
        if found != shape:
            raise CladaError(f"{path}: {field.name} has the shape {list(found)}, expected {list(shape)}")


def read_token_table(path: Path) -> TokenTable:
    """Read a table.

    Raises:
        CladaError: The file cannot be read, is not such a table, or its columns do not fit each other.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            columns: dict[str, Any] = {field.name: arrays[field.name] for field in fields(TokenTable)}
    except OSError as error:
        raise CladaError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CladaError(f"{path} is not a table of tokens, as `clada eval --tokens` writes it") from error
    table = TokenTable(**columns)
    _check_shapes(table, path)
    return table
