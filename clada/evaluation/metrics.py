"""Metrics of a result, each computed from columns of one value per sequence."""

from collections.abc import Mapping

from clada.evaluation.statistics import Estimate, Statistic, bootstrap, exp_difference, exp_mean, mean, ratio
from clada.evaluation.subject import Floats

# By name: the statistic, and the columns it takes.
METRICS: dict[str, tuple[Statistic, tuple[str, ...]]] = {
    "perplexity": (exp_mean, ("nll",)),
    "dense_perplexity": (exp_mean, ("dense_nll",)),
    "perplexity_ratio": (exp_difference, ("nll", "dense_nll")),
    "accuracy": (mean, ("correct",)),
    "dense_accuracy": (mean, ("dense_correct",)),
    "accuracy_ratio": (ratio, ("correct", "dense_correct")),
    "kl": (mean, ("kl",)),
    "disagreement": (mean, ("disagreement",)),
    "sparsity": (mean, ("sparsity",)),
    "read_fraction": (mean, ("read_fraction",)),
    "ffn_bytes": (mean, ("ffn_bytes",)),
    "choice_accuracy": (mean, ("choice",)),
    "dense_choice_accuracy": (mean, ("dense_choice",)),
    "choice_accuracy_ratio": (ratio, ("choice", "dense_choice")),
    "cloze_accuracy": (mean, ("cloze",)),
    "dense_cloze_accuracy": (mean, ("dense_cloze",)),
    "cloze_accuracy_ratio": (ratio, ("cloze", "dense_cloze")),
    "exact_match_length": (mean, ("exact_match",)),
}


def metrics(sequences: Mapping[str, Floats], ffn_bytes: int, seed: int) -> dict[str, Estimate]:
    """Compute all metrics that are defined.

    Args:
        sequences: Columns f64[S] by name; those of a task are not there where it was not asked.
        ffn_bytes: Size of all feed-forward weights.
        seed: Seed of the resamples.
    """
    columns = {**sequences, "ffn_bytes": sequences["read_fraction"] * ffn_bytes}
    estimates = {
        name: bootstrap(statistic, [columns[column] for column in names], seed)
        for name, (statistic, names) in METRICS.items()
        if columns.keys() >= set(names)
    }
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}
