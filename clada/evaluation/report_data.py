"""Results as the report shows them, grouped by model and text."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clada.errors import CladaError
from clada.evaluation.result import read_result
from clada.evaluation.statistics import Estimate
from clada.evaluation.subject import with_weights

# How much more perplexity is little; the whole interval must be below it.
GOOD_PERPLEXITY = 0.01


@dataclass(frozen=True)
class Measured:
    """One result.

    Args:
        name: Name of its subject.
        policy: Name of the policy, and of the weights where they are quantized.
        subject: As in the file, as are the following.
        data: Text that it was measured on.
        metrics: Each with its 95% interval.
        sparsity: Realized, by layer.
        pool: Share of the neurons that the layer was allowed, by layer.
        tools: Versions.
        path: The file.
    """

    name: str
    policy: str
    subject: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Estimate]
    sparsity: tuple[float, ...]
    pool: tuple[float, ...]
    tools: dict[str, str]
    path: Path


@dataclass(frozen=True)
class Group:
    """Results that can be compared.

    Args:
        title: Name of the model.
        subtitle: Name of the text, and how it was read.
        verdict: Conclusion from the results, in a sentence.
        results: Sorted by policy and cost.
    """

    title: str
    subtitle: str
    verdict: str
    results: tuple[Measured, ...]


def _all_measured(path: Path) -> list[Measured]:
    """Result of a file, and those of its parts."""
    content = read_result(path)
    return [_measured(path, result) for result in (content, *content.get("parts", ()))]


def _measured(path: Path, content: dict[str, Any]) -> Measured:
    try:
        subject, layers = content["subject"], content["layers"]
        metrics = {name: Estimate(**estimate) for name, estimate in content["metrics"].items()}
        result = Measured(
            name=str(subject["name"]),
            policy=with_weights(str(subject["policy"]["name"]), subject.get("quantization")),
            subject=subject,
            data=content["data"],
            metrics=metrics,
            sparsity=tuple(float(layer["sparsity"]) for layer in layers),
            pool=tuple(float(layer["pool"]) for layer in layers),
            tools=content["tools"],
            path=path,
        )
        _ = metrics["read_fraction"], metrics["sparsity"], _key(result), _titles(result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CladaError(f"{path} lacks a part of a result of `clada eval`: {error}") from error
    if not all(math.isfinite(value) for estimate in metrics.values() for value in vars(estimate).values()):
        raise CladaError(f"{path} holds a metric that is not finite")
    return result


def _key(result: Measured) -> tuple[Any, ...]:
    """Grouping key, equal for results that can be compared."""
    subject, data = result.subject, result.data
    return (
        subject.get("model", ""),
        subject["family"],
        subject["parameters"],
        tuple(subject["neurons"]),
        data["sha256"],
        data["sequences"],
        data["prompt_tokens"],
        data["scored_tokens"],
        data["seed"],
    )


def _titles(result: Measured) -> tuple[str, str]:
    subject, data = result.subject, result.data
    name = f"{subject['model']}: " if subject.get("model") else ""
    size = f"{int(subject['parameters']) / 1e6:,.1f} M parameters, {subject['layers']} layers"
    title = f"{name}{subject['family']}, {size}"
    subtitle = (
        f"{data['name']}: {data['sequences']} sequences, the first {data['prompt_tokens']} tokens read densely, "
        f"{data['scored_tokens']:,} tokens scored in decode"
    )
    return title, subtitle


def _change(ratio: Estimate) -> str:
    return f"{ratio.value - 1:+.2%} ({ratio.low - 1:+.2%} to {ratio.high - 1:+.2%})"


def _verdict(results: Sequence[Measured]) -> str:
    """Sentence on the result that reads least without much loss, and its loss; empty without a perplexity."""
    measured = [result for result in results if "perplexity_ratio" in result.metrics and result.policy != "dense"]
    if not measured:
        return ""
    good = [result for result in measured if result.metrics["perplexity_ratio"].high < 1 + GOOD_PERPLEXITY]
    if good:
        # To the percent: of those that read as much, the one that costs least.
        best = min(
            good,
            key=lambda r: (round(100 * r.metrics["read_fraction"].value), r.metrics["perplexity_ratio"].value),
        )
    else:
        best = min(measured, key=lambda result: result.metrics["perplexity_ratio"].value)
    metrics = best.metrics
    text = (
        f"{best.name} reads {metrics['read_fraction'].value:.0%} of the bytes that it may skip, and changes "
        f"perplexity by {_change(metrics['perplexity_ratio'])}"
    )
    if "disagreement" in metrics:
        text += f"; {metrics['disagreement'].value:.1%} of the likeliest next tokens are not the dense model's"
    if len(measured) == 1:
        return f"{text}."
    if good:
        return f"Least is read at less than {GOOD_PERPLEXITY:.0%} more perplexity by one of them: {text}."
    return f"None keeps perplexity within {GOOD_PERPLEXITY:.0%} of the dense model's. The nearest: {text}."


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*.json"))
    if not found:
        raise CladaError(f"{path} holds no .json file")
    return found


def read_groups(paths: Iterable[Path]) -> list[Group]:
    """Read results and group those that can be compared, largest model first.

    Args:
        paths: Files, or folders of nothing but results, with their subfolders.

    Raises:
        CladaError: A path is missing, a folder has no results, or a file is not one.
    """
    files = dict.fromkeys(file.resolve() for path in paths for file in _files(path))
    by_key: dict[tuple[Any, ...], list[Measured]] = {}
    for result in (result for file in files for result in _all_measured(file)):
        by_key.setdefault(_key(result), []).append(result)
    groups = []
    for results in by_key.values():
        ordered = sorted(results, key=lambda r: (r.policy, r.metrics["read_fraction"].value))
        groups.append(Group(*_titles(ordered[0]), _verdict(ordered), tuple(ordered)))
    return sorted(groups, key=lambda group: -group.results[0].subject["parameters"])


def tool_versions(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Versions of each tool over all results."""
    versions: dict[str, list[str]] = {}
    for result in (result for group in groups for result in group.results):
        for tool, number in result.tools.items():
            if number not in versions.setdefault(tool, []):
                versions[tool].append(number)
    return versions
