"""TEAL's search for the share each matrix of a block reads (Liu et al. 2024, arXiv 2408.14690, algorithm 1).

A block begins dense. At each step every product is tried with fewer inputs, each with the same share of the block's
weights less, and the one stays reduced with which the block's output has the least L2 error, given the inputs that the
dense model shows the block. So each block has a path of its own from all of its weights down, and all blocks read the
same share. TEAL has a threshold for each matrix; here matrices of one input (q, k, v; gate, up) share one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clada.evaluation.subject import Floats
from clada.exporter.calibration.price import Worth, price_of
from clada.exporter.model.hooks import registered
from clada.exporter.model.patch import decoder_layers
from clada.exporter.model.products import input_hooks, layer_starts
from clada.exporter.progress import tracked


@dataclass(frozen=True)
class Descent:
    """Shares read by a block's P products after each of N steps, the first of which is dense.

    Args:
        kept: f64[N, P], shares of their inputs.
        read: f64[N], share of the block's weights.
    """

    kept: Floats
    read: Floats

    def at(self, share: float) -> list[float]:
        """Shares of the products' inputs at which the block reads a share of its weights, between steps too."""
        return [float(np.interp(share, self.read[::-1], kept[::-1])) for kept in self.kept.T]


@dataclass(frozen=True)
class Block:
    """Decoder layer by itself, with its inputs in the dense model.

    Args:
        layer: The layer.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        worths: Worth of its products' inputs, by |x_i|.
        decoded: bool[R, S], the tokens that skip, and whose output counts.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    worths: Sequence[Worth]
    decoded: Tensor

    def shares(self) -> Floats:
        """Share f64[P] of the block's weights in each product."""
        weights = np.array([worth.product.weights for worth in self.worths], np.float64)
        found: Floats = weights / weights.sum()
        return found

    def threshold(self, index: int, kept: float) -> Tensor | None:
        """Threshold f32[D] with which a product keeps a share of its inputs; None for all."""
        worth = self.worths[index]
        return None if kept == 1 else worth.thresholds(price_of([worth], kept))

    def output(self, thresholds: Sequence[Tensor | None]) -> Tensor:
        """Output T[N, D] at decoded tokens, where products have these thresholds."""

        def skip(index: int, x: Tensor) -> Tensor | None:
            threshold = thresholds[index]
            if threshold is None:
                return None
            tokens = x.reshape(*self.decoded.shape, -1)
            return tokens.masked_fill(self.decoded[..., None] & (tokens.abs() < threshold), 0).reshape(x.shape)

        with input_hooks([worth.product for worth in self.worths], skip):
            output = self.layer(*self.args, **self.kwargs)
        output = output[0] if isinstance(output, tuple) else output
        found: Tensor = output.reshape(*self.decoded.shape, -1)[self.decoded]
        return found


def error(output: Tensor, dense: Tensor) -> float:
    """L2 norm of the difference of two outputs."""
    return float((output - dense).norm())


def find_path(block: Block, least: float, step: float) -> Descent:
    """Find the greedy path of a block, from all of its weights to a share of them.

    Args:
        block: The block.
        least: The share with which it ends, or the step below it.
        step: The share of its weights that each step takes from one product.
    """
    shares = block.shares()
    products = range(len(shares))
    thresholds: list[Tensor | None] = [None] * len(shares)
    dense = block.output(thresholds)
    kept = [np.ones(len(shares))]
    while kept[-1] @ shares > least:
        # A product with less than a step left would be tried with less than others give up.
        tries = [index for index in products if kept[-1][index] >= step / shares[index]]
        if not tries:
            kept.append(np.zeros(len(shares)))
            break
        lost: dict[int, tuple[float, Tensor | None]] = {}
        for index in tries:
            tried = block.threshold(index, kept[-1][index] - step / shares[index])
            output = block.output([*thresholds[:index], tried, *thresholds[index + 1 :]])
            lost[index] = error(output, dense), tried
        best = min(tries, key=lambda index: lost[index][0])
        thresholds[best] = lost[best][1]
        kept.append(np.where(np.arange(len(shares)) == best, kept[-1] - step / shares, kept[-1]))
    path = np.stack(kept)
    return Descent(path, path @ shares)


@torch.no_grad()
def blocks_of(model: Any, worths: Sequence[Worth], rows: Tensor, prompt_tokens: int) -> list[Block]:
    """Blocks of a model, with their inputs when rows i64[R, S] are read densely, all at once."""
    layers = list(decoder_layers(model))
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with registered(
        layer.register_forward_pre_hook(lambda _layer, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for layer in layers
    ):
        model(input_ids=rows, use_cache=False, logits_to_keep=1)
    starts = layer_starts([worth.product for worth in worths])
    decoded = (torch.arange(rows.shape[1]) >= prompt_tokens).expand(rows.shape)
    return [
        Block(layer, *call, worths[start:end], decoded)
        for layer, call, start, end in zip(layers, calls, starts[:-1], starts[1:], strict=True)
    ]


@torch.no_grad()
def search(
    model: Any, worths: Sequence[Worth], rows: Tensor, prompt_tokens: int, least: float, step: float
) -> list[Descent]:
    """Find the path of each block.

    Args:
        model: A causal LM in float32.
        worths: Worth of its products' inputs, by |x_i|.
        rows: i64[R, S] calibration tokens; all are in memory at once.
        prompt_tokens: Tokens at the start of each row that are read densely.
        least: See find_path.
        step: See find_path.
    """
    blocks = blocks_of(model, worths, rows, prompt_tokens)
    return [find_path(block, least, step) for block in tracked(blocks, "blocks")]


def kept_shares(paths: Sequence[Descent], share: float) -> list[float]:
    """Share of its inputs that each product keeps, block after block, where each block reads a share."""
    return [kept for path in paths for kept in path.at(share)]
