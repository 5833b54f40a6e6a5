"""Calibration of thresholds, pools and their adaptation, for a cost, a sparsity or an error budget."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from clada.contract.manifest import GOALS, GoalName, LayerCalibration, Policy
from clada.contract.pool import PoolPolicy
from clada.errors import CladaError
from clada.exporter.calibration.adaptation import adapt
from clada.exporter.calibration.decode_pass import Decoded, Texts
from clada.exporter.calibration.goal import Goal
from clada.exporter.calibration.policies import POLICIES
from clada.exporter.calibration.selection import pools_of, select
from clada.exporter.defaults import BYTES, BYTES_POLICY, NEURONS_POLICY, TARGET_SPARSITY
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.hooks import registered
from clada.exporter.model.steering import SiteSettings

# How much looser and tighter, in logarithm, the thresholds may get once everything else is fitted: what compensation
# gives back makes later layers more active.
_FACTORS = (-1.5, 3.0)
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class CalibrationConfig:
    """Goal of a calibration: one, or none for the policy's usual one.

    Args:
        bytes: Share of all weights' bytes that a token reads, in (0, 1): the goal of the policy "price", and only that.
        target_sparsity: Mean share of neurons that a token does not compute, in (0, 1).
        ffn_cost: Share of the feed-forward weights' bytes that a token reads, in (0, 1).
        error_budget: Highest KL divergence from the dense model, nats per token.
        policy: Policy that makes the model sparse; None for the goal's usual one, "price" where there is no goal.
        name: Name of the policy, where it is not one of POLICIES.

    Raises:
        CladaError: Two goals, one out of range, or one that the policy has not.
    """

    bytes: float | None = None
    target_sparsity: float | None = None
    ffn_cost: float | None = None
    error_budget: float | None = None
    policy: Policy | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if len(self._given) > 1:
            raise CladaError(f"there are several goals, {' and '.join(self._given)}: give one of them")
        for name, share in (
            ("target sparsity", self.target_sparsity),
            ("FFN cost", self.ffn_cost),
            ("share of bytes", self.bytes),
        ):
            if share is not None and not 0 < share < 1:
                raise CladaError(f"the {name} is {share}; it must lie between 0 and 1, exclusive")
        if self.error_budget is not None and not 0 < self.error_budget < float("inf"):
            raise CladaError(f"the error budget is {self.error_budget}; it must be a positive number of nats")

        if (self.goal.name == "bytes") != self.skips_inputs:
            raise CladaError(
                f"the policy is {self.policy_name}, and the goal {self.goal.name}: a share of all weights' bytes "
                f"is the goal of the policy {BYTES_POLICY}, and of no other"
            )

    @property
    def _given(self) -> dict[GoalName, float]:
        values = {name: getattr(self, name) for name in GOALS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def goal(self) -> Goal:
        """Name and value of the goal."""
        for name, value in self._given.items():
            return Goal(name, value)
        return Goal("bytes", BYTES) if self.skips_inputs else Goal("target_sparsity", TARGET_SPARSITY)

    @property
    def skips_inputs(self) -> bool:
        """Whether inputs of all products are skipped, rather than neurons."""
        return self.rules.thresholds == "price"

    @property
    def rules(self) -> Policy:
        """Policy to follow."""
        if self.policy is not None:
            return self.policy
        return POLICIES[NEURONS_POLICY if self._given.keys() - {"bytes"} else BYTES_POLICY]

    @property
    def policy_name(self) -> str:
        """Name of that policy."""
        return self.name or next((name for name, policy in POLICIES.items() if policy == self.rules), "custom")


@dataclass(frozen=True)
class Calibration:
    """The outcome, and what was measured with it.

    Args:
        calibrated: The constants of the graph.
        pools: Policy of the pools; None where every neuron may be used.
        layers: Calibration of each layer.
        divergence: KL divergence of the output from the dense model's, nats per token.
        agreement: Share of tokens whose most likely successor is the dense model's.
        ffn_cost: Share of the feed-forward weights' bytes that were read.
        tokens: Tokens that were measured, the dense prompts not counted.
        prompt_tokens: Tokens of each row that were read densely, as a prompt is.
        gains: Share of the divergence that the load's map and anticipation save by themselves, as estimated on
            text that they were not fitted on.
        anticipation_r2: Share of the variance of a token's log divergence that the probe explains on such text.
    """

    calibrated: Calibrated
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
    """Number of tokens of a calibration row that are read densely, as a prompt."""
    return row_tokens // 4


def _compensation(texts: Texts, settings: SiteSettings, pools: list[Tensor] | None) -> tuple[Tensor, ...]:
    """The mean over decoded tokens of the output f32[D] that each layer leaves out with these settings and pools."""
    width = texts.layers[0].outward.shape[1]
    sums = [torch.zeros(width, dtype=torch.float64) for _ in texts.layers]

    def add(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> None:
        missing = layer.dense(args[0].reshape(-1, width)) - y.reshape(-1, width)
        scale = layer.current.steering.scale
        assert isinstance(scale, Tensor)
        sums[layer.index] += missing[scale.flatten() > 0].double().sum(0)

    with registered(layer.register_forward_hook(add) for layer in texts.layers):
        texts.decode(settings, pools=pools)
    return tuple((total / texts.decoded_tokens).float() for total in sums)


def _tightened(settings: SiteSettings, logarithm: float) -> SiteSettings:
    """Settings whose thresholds are multiplied by a factor, given by its logarithm."""
    factor = math.exp(logarithm)
    scaled = ((threshold.double() * factor).clamp(max=_LARGEST).float() for threshold in settings.thresholds)
    return replace(settings, thresholds=tuple(scaled))


def calibrate(model: Any, rows: Tensor, config: CalibrationConfig) -> Calibration:
    """Choose what makes a patched model sparse.

    Args:
        model: A causal LM after `sparsify`, in float32.
        rows: i64[N, S] calibration tokens.
        config: Goal of the calibration.

    Returns:
        The constants of the graph, how pools are chosen, and what was measured.

    Raises:
        CladaError: The policy cannot reach the goal.
    """
    policy, goal = config.rules, config.goal
    with tqdm(total=5, desc="calibrating", leave=False, disable=None) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        step("dense model")
        texts = Texts(model, rows, prompt_tokens(rows.shape[1]))
        step("thresholds and pools")
        thresholds, pool_policy = select(texts, policy, goal)
        settings, pools = SiteSettings(thresholds), pools_of(pool_policy, texts)
        if policy.compensation:
            step("compensation")
            settings = replace(settings, compensation=_compensation(texts, settings, pools))
        step("adaptation")
        adaptation = adapt(texts, settings, policy, pools)
        step("goal")
        if policy.thresholds:

            def tightened(logarithm: float) -> Decoded:
                return adaptation.decode(texts, _tightened(settings, logarithm), pools)

            settings = _tightened(settings, goal.search(tightened, *_FACTORS))
        decoded = adaptation.decode(texts, settings, pools)
    active = decoded.active.double().mean((0, 1)).tolist()
    shares = [1.0] * len(active)
    if pool_policy is not None:
        shares = [size / layer.neurons for size, layer in zip(pool_policy.sizes, texts.layers, strict=True)]
    return Calibration(
        calibrated=Calibrated(
            settings.thresholds, settings.compensation, adaptation.anticipations, load_map=adaptation.load_map
        ),
        pools=pool_policy,
        layers=[
            LayerCalibration(1 - kept, share, float(t.median()))
            for kept, share, t in zip(active, shares, settings.thresholds, strict=True)
        ],
        divergence=float(decoded.divergence.mean(dtype=torch.float64)),
        agreement=float(decoded.agrees.double().mean()),
        ffn_cost=float(decoded.read.mean(dtype=torch.float64)),
        tokens=texts.decoded_tokens,
        prompt_tokens=texts.prompt_tokens,
        gains=adaptation.gains,
        anticipation_r2=adaptation.anticipation_r2,
    )
