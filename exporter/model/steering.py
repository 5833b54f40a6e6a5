"""The steering of a patched model, pass by pass: what its sites read before a pass, and what the pass leaves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clada.errors import CladaError
from clada.exporter.model.anticipation import Anticipation


@dataclass(frozen=True)
class SiteSettings:
    """The rule by which each site of a model skips: the candidate of a search, or a calibrated one.

    A site is a layer's feed-forward network, which skips neurons, or a product, which skips inputs.

    Args:
        thresholds: f32[F] for each layer, or f32[D] for each product; empty where nothing is skipped but what is 0.
        compensation: f32[D] for each layer, added to its output where it is sparse; empty for none.
        anticipations: Each refines the scale from its site to the next one's.
    """

    thresholds: tuple[Tensor, ...] = ()
    compensation: tuple[Tensor, ...] = ()
    anticipations: tuple[Anticipation, ...] = ()


@dataclass(frozen=True)
class Steering:
    """One pass as it is asked for.

    Args:
        settings: The rule that sites follow.
        scale: Factor on the thresholds, one for all tokens or f32[B, S]; 0 is dense, negative is padding.
        pools: bool[B, F] or bool[B, D] for each site, the neurons or inputs it may use, or None for all.
        load: f32[B, S], which anticipation reads; None where there is none.
        sparse: bool[B, S], the tokens whose outputs are compensated; None for those whose scale is above 0.
        last_only: Whether the output matrix is given each text's last token alone.
        weights: Tensors of each product's weights, as its op takes them, in the place of its own; empty for its own.
    """

    settings: SiteSettings = field(default_factory=SiteSettings)
    scale: float | Tensor = 0.0
    pools: Sequence[Tensor] | None = None
    load: Tensor | None = None
    sparse: Tensor | None = None
    last_only: bool = False
    weights: Sequence[Sequence[Tensor]] = ()


@dataclass
class Trace:
    """One pass as it went, filled in by the sites that ran, in their order.

    Args:
        active: i32[B, S] by site, how many neurons or inputs were kept.
        score: f32[B, F] by layer, how much each neuron contributed.
        refined: f32[B, S], the scale as the last anticipation left it; None where none was asked.
    """

    active: dict[int, Tensor] = field(default_factory=dict)
    score: dict[int, Tensor] = field(default_factory=dict)
    refined: Tensor | None = None


@dataclass
class CurrentPass:
    """The pass that a model is in, which all of its sites look up; `steered` alone replaces it. Dense where none is."""

    steering: Steering = field(default_factory=Steering)
    trace: Trace = field(default_factory=Trace)

    def threshold(self, site: int, width: int, device: torch.device) -> Tensor:
        """f32[width], that of a site."""
        thresholds = self.steering.settings.thresholds
        return thresholds[site] if thresholds else torch.zeros(width, device=device)

    def scale_at(self, site: int, x: Tensor, of_last: bool = False) -> Tensor:
        """The scale f32[B, S] of the tokens of a site's input, refined from here on where there is an anticipation.

        Args:
            site: Index of the layer or product.
            x: T[B, S, D], or [B * S, D] as some families flatten it.
            of_last: Whether x is of each text's last token alone: S is 1.
        """
        steering, trace = self.steering, self.trace

        def cut(of_tokens: Tensor) -> Tensor:
            # A slice for nothing would be a node of the graph.
            return of_tokens[:, -1:] if of_last else of_tokens

        if isinstance(steering.scale, Tensor):
            given = cut(steering.scale)
        else:
            tokens = x.shape[:-1] if x.ndim == 3 else (1, x.shape[0])
            given = torch.full(tokens, steering.scale, dtype=torch.float32, device=x.device)
        for anticipation in steering.settings.anticipations:
            if anticipation.site == site and steering.load is not None:
                trace.refined = anticipation.refined(given, x.reshape(*given.shape, -1), cut(steering.load))
        return given if trace.refined is None else cut(trace.refined)


class SteeredModule(nn.Module):
    """A site of a model, or what shares one: it takes part in the model's current pass."""

    def __init__(self, current: CurrentPass) -> None:
        super().__init__()
        self.current = current


@contextmanager
def steered(model: nn.Module, steering: Steering | None = None) -> Iterator[Trace]:
    """Within the context the sites of a patched model follow this steering in one pass; None is a dense pass.

    Yields:
        The pass's trace, which is filled in as it runs.

    Raises:
        CladaError: The model is not patched.

    Example:
        >>> with steered(model, Steering(SiteSettings(thresholds), scale=1.0)) as trace:
        ...     logits = model(input_ids).logits
        >>> trace.active[0]
    """
    current = next((module.current for module in model.modules() if isinstance(module, SteeredModule)), None)
    if current is None:
        raise CladaError("the model has no sparse sites that could be steered: make it sparse first")
    before = current.steering, current.trace
    current.steering, current.trace = steering or Steering(), Trace()
    try:
        yield current.trace
    finally:
        current.steering, current.trace = before
