"""Policies by which a model may be made sparse, one row each."""

from dataclasses import replace
from typing import Any

from clada.contract.manifest import Policy

_CLADA = Policy(
    thresholds="sensitivity",
    allocation=True,
    pool="blended",
    compensation=True,
    scale="load",
    reanalysis=True,
    anticipation=True,
)

POLICIES: dict[str, Policy] = {
    "clada": _CLADA,
    "price": Policy(thresholds="price", scale="load", anticipation=True),
    "dense": Policy(),
    # Lee et al. 2024: |act(gate)| against one quantile a layer.
    "cats": Policy(thresholds="activation"),
    # Dong et al. 2024: the neurons that the prompt used most, the same share of each layer.
    "griffin": Policy(pool="prompt"),
    # After 2607.08991: a table by token id in the place of the load signal, everything else as in clada.
    "sats": Policy("sensitivity", allocation=True, pool="blended", compensation=True, scale="token"),
}

# Each in a line, for help.
SUMMARIES = {
    "clada": "thresholds by what neurons are worth, in a pool that the prompt chooses, loosened where text is hard",
    "price": "inputs of every matrix, all at one price of a byte, loosened where text is hard; the others skip neurons",
    "dense": "every neuron: nothing is skipped",
    "cats": "one threshold a layer on the gate's activation (Lee et al. 2024)",
    "griffin": "the neurons that the prompt used most (Dong et al. 2024)",
    "sats": "as clada, loosened by a table of tokens, not by how hard the text is",
}

# What clada is made of, and what it is without that part: for measuring what each is worth.
PARTS: dict[str, dict[str, str | bool]] = {
    "pool": {"pool": "", "reanalysis": False},
    "prompt": {"pool": "calibration", "reanalysis": False},
    "allocation": {"allocation": False},
    "compensation": {"compensation": False},
    "load": {"scale": "", "anticipation": False},
    "reanalysis": {"reanalysis": False},
    "anticipation": {"anticipation": False},
}


def without(policy: Policy, part: str) -> Policy:
    """Copy of a policy without one of PARTS."""
    changes: dict[str, Any] = PARTS[part]
    return replace(policy, **changes)
