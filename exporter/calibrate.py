"""Calibration: thresholds, pools and what adapts them, for a cost, a sparsity or an error budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from clada.exporter.adaptation import adapt
from clada.exporter.decode_pass import Decoded, Texts
from clada.exporter.decoder import LoadMap
from clada.exporter.goal import Goal
from clada.exporter.neurons import activations, outward_matrix
from clada.exporter.patch import Sparsity
from clada.exporter.policies import POLICIES
from clada.exporter.selection import pools_of, select
from clada.exporter.settings import TARGET_SPARSITY
from clada.plugins.errors import CladaError
from clada.runtime.manifest import LayerCalibration, Policy
from clada.runtime.pool import PoolPolicy

# How much looser and tighter, in logarithm, the thresholds may get once everything else is fitted: what compensation
# gives back makes later layers more active.
_FACTORS = (-1.5, 3.0)
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class CalibrationConfig:
    """What to calibrate for; the goal is one of the four, the last that is given.

    Args:
        target_sparsity: Mean share of neurons that a token does not compute, in (0, 1).
        ffn_cost: Share of the feed-forward weights' bytes that a token reads, in (0, 1).
        error_budget: Highest KL divergence from the dense model, nats a token.
        bytes: Share of all weights' bytes that a token reads, in (0, 1): the goal of the policy "price", and only that.
        policy: How the model is made sparse.
        name: What the policy is called.
    """

    target_sparsity: float = TARGET_SPARSITY
    ffn_cost: float | None = None
    error_budget: float | None = None
    bytes: float | None = None
    policy: Policy = field(default_factory=lambda: POLICIES["clada"])
    name: str = "clada"

    def __post_init__(self) -> None:
        for name, share in (
            ("target sparsity", self.target_sparsity),
            ("FFN cost", self.ffn_cost),
            ("share of bytes", self.bytes),
        ):
            if share is not None and not 0 < share < 1:
                raise CladaError(f"the {name} is {share}; it must lie between 0 and 1, exclusive")
        if self.error_budget is not None and not 0 < self.error_budget < float("inf"):
            raise CladaError(f"the error budget is {self.error_budget}; it must be a positive number of nats")

        if (self.bytes is not None) != (self.policy.thresholds == "price"):
            raise CladaError(
                f"the policy is {self.name}, and bytes is {self.bytes}: a share of all weights' bytes is the goal of "
                "the policy price, and of no other"
            )

    @property
    def goal(self) -> Goal:
        """What is asked for."""
        if self.bytes is not None:
            return Goal("bytes", self.bytes)
        if self.error_budget is not None:
            return Goal("error_budget", self.error_budget)
        if self.ffn_cost is not None:
            return Goal("ffn_cost", self.ffn_cost)
        return Goal("target_sparsity", self.target_sparsity)


@dataclass(frozen=True)
class Calibration:
    """The outcome; thresholds, compensation and anticipations are in the model's Sparsity.

    Args:
        load_map: Constants of the load signal.
        pools: How pools are chosen; None where every neuron may be used.
        layers: What each layer was given.
        divergence: KL divergence of the output from the dense model's, nats a token.
        agreement: Share of tokens whose most likely successor is the dense model's.
        ffn_cost: Share of the feed-forward weights' bytes that were read.
        tokens: Tokens that were measured, the dense prompts not counted.
        prompt_tokens: Tokens of each row that were read densely, as a prompt is.
        gains: Share of the divergence that the load's map and anticipation save by themselves, as estimated on
            text that they were not fitted on.
        anticipation_r2: Share of the variance of a token's log divergence that the probe explains on such text.
    """

    load_map: LoadMap
    pools: PoolPolicy | None
    layers: list[LayerCalibration]
    divergence: float
    agreement: float
    ffn_cost: float
    tokens: int
    prompt_tokens: int
    gains: dict[str, float]
    anticipation_r2: float | None


def prompt_tokens(row_tokens: int) -> int:
    """How many tokens of a calibration row are read densely, as a prompt."""
    return row_tokens // 4


def _compensate(texts: Texts, sparsity: Sparsity, decode: Callable[..., Decoded]) -> None:
    """Set the compensation: the mean over decoded tokens of what each layer, as it is steered, leaves out."""
    width = outward_matrix(texts.layers[0]).shape[1]
    sums = [torch.zeros(width, dtype=torch.float64) for _ in texts.layers]
    sparsity.compensation = [torch.zeros(width) for _ in texts.layers]
    handles = []
    for index, layer in enumerate(texts.layers):

        def hook(_module: Any, args: tuple[Tensor, ...], y: Tensor, index: int = index) -> None:
            layer, x = texts.layers[index], args[0].reshape(-1, width)
            a, up = activations(layer, x)
            dense = (a * up) @ outward_matrix(layer)
            if "b_out" in layer.weight_names:
                dense = dense + layer.get_parameter("b_out")
            scale = sparsity.scale
            assert isinstance(scale, Tensor)
            missing = (dense - y.reshape(-1, width))[scale.flatten() > 0]
            sums[index] += missing.double().sum(0)

        handles.append(layer.register_forward_hook(hook))
    try:
        decode()
    finally:
        for handle in handles:
            handle.remove()
    sparsity.compensation = [(total / texts.decoded_tokens).float() for total in sums]


def calibrate(model: Any, sparsity: Sparsity, rows: Tensor, config: CalibrationConfig) -> Calibration:
    """Choose what makes a patched model sparse, and set it.

    Args:
        model: A causal LM after `sparsify`, in float32.
        sparsity: Its state; its thresholds, compensation and anticipations are replaced.
        rows: i64[N, S] calibration tokens.
        config: What to calibrate for.

    Returns:
        The load signal's constants, how pools are chosen, and what was measured.

    Raises:
        CladaError: The policy cannot reach the goal.
    """
    policy, goal = config.policy, config.goal
    sparsity.thresholds[:] = [torch.zeros_like(t) for t in sparsity.thresholds]
    sparsity.compensation, sparsity.anticipations = [], []
    with tqdm(total=5, desc="calibrating", leave=False, disable=None) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        step("dense model")
        texts = Texts(model, sparsity, rows, prompt_tokens(rows.shape[1]))
        step("thresholds and pools")
        pool_policy = select(texts, policy, goal)
        pools = pools_of(pool_policy, texts)
        if policy.compensation:
            step("compensation")
            _compensate(texts, sparsity, lambda: texts.decode(pools=pools))
        step("adaptation")
        adaptation = adapt(texts, policy, pools)
        step("goal")
        decoded = adaptation.decode(texts, pools)
        if policy.thresholds:
            chosen = list(sparsity.thresholds)

            def tightened(logarithm: float) -> Decoded:
                sparsity.thresholds[:] = [
                    (t.double() * math.exp(logarithm)).clamp(max=_LARGEST).float() for t in chosen
                ]
                return adaptation.decode(texts, pools)

            decoded = tightened(goal.search(tightened, *_FACTORS))
    active = decoded.active.double().mean((0, 1)).tolist()
    shares = [1.0] * len(active)
    if pool_policy is not None:
        shares = [size / layer.neurons for size, layer in zip(pool_policy.sizes, texts.layers, strict=True)]
    return Calibration(
        load_map=adaptation.load_map,
        pools=pool_policy,
        layers=[
            LayerCalibration(1 - kept, share, float(t.median()))
            for kept, share, t in zip(active, shares, sparsity.thresholds, strict=True)
        ],
        divergence=float(decoded.divergence.mean(dtype=torch.float64)),
        agreement=float(decoded.agrees.double().mean()),
        ffn_cost=float(decoded.read.mean(dtype=torch.float64)),
        tokens=texts.decoded_tokens,
        prompt_tokens=texts.prompt_tokens,
        gains=adaptation.gains,
        anticipation_r2=adaptation.anticipation_r2,
    )
