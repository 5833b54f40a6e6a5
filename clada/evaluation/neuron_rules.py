"""Rules that skip neurons of the feed-forward networks, at equal bytes of the whole model: all else is read.

cats     Lee et al. 2024: |act(gate)| against one level a layer; gates are read whole
griffin  Dong et al. 2024: the neurons that the prompt used most, the same share of each layer
clada    thresholds by what neurons are worth and a pool that the prompt chooses, as the policy of that name; without
         its compensation, load and anticipation

These are the exporter's own policies and its own search (policies.py and selection.py of exporter/calibration).
"""

from dataclasses import replace
from typing import Literal

import torch

from clada.contract.manifest import Policy
from clada.errors import UnreachableError
from clada.evaluation.input_rules import Outcome, Part, outcome_of, share_left
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.goal import Goal
from clada.exporter.calibration.policies import POLICIES
from clada.exporter.calibration.selection import pools_of, select
from clada.exporter.model.steering import SiteSettings

NeuronRule = Literal["cats", "griffin", "clada"]
NEURON_RULES: tuple[NeuronRule, ...] = ("cats", "griffin", "clada")


def _always_read(policy: Policy, texts: Texts) -> float:
    """Share of the feed-forward weights that the policy always reads: gates, where no pool is chosen."""
    return 1 / len(texts.layers[0].matrices) if policy.thresholds and not policy.pool else 0.0


def decode_neurons(
    name: NeuronRule, weights: dict[Part, int], share: float, calibration: Texts, heldout: Texts
) -> Outcome:
    """Decode held-out text by a rule that reads a share of all weights of the model.

    Args:
        name: Name of the rule.
        weights: Number of weights of each part of the model.
        share: The share.
        calibration: Text by which the rule is set, of a patched model.
        heldout: Text of the same model.

    Raises:
        UnreachableError: The rule cannot read as little.
    """
    total, rest = sum(weights.values()), weights["attention"] + weights["output"]
    policy = replace(POLICIES[name], reanalysis=False)
    always = rest + round(_always_read(policy, calibration) * weights["ffn"])
    share_left(name, share, always, total)
    of_ffn = (share * total - rest) / weights["ffn"]
    try:
        thresholds, pool = select(calibration, policy, Goal("ffn_cost", of_ffn))
    except UnreachableError as error:
        raise UnreachableError(f"{name} cannot read {share:.0%} of all weights: {error}") from error
    decoded = heldout.decode(SiteSettings(thresholds), pools=pools_of(pool, heldout))
    read = (decoded.read.double() * weights["ffn"] + rest) / total
    parts: dict[Part, float] = {"ffn": float(decoded.read.mean(dtype=torch.float64)), "attention": 1.0, "output": 1.0}
    return outcome_of(decoded, read, parts)
