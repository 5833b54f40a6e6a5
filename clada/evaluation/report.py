"""Report: one page that embeds everything it shows."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from clada.evaluation.curves import curves_figure
from clada.evaluation.heat_map import HeatMap, load_color
from clada.evaluation.images import svg_uri
from clada.evaluation.layer_plot import layers_figure
from clada.evaluation.regression import Fit, Regression
from clada.evaluation.regression_plot import regression_figure
from clada.evaluation.report_data import Group, Measured, tool_versions
from clada.evaluation.token_table import TokenTable

# Of the table: the metric, its heading, its unit, how it is written, and what it is multiplied with.
_COLUMNS = (
    ("read_fraction", "bytes read", "%", ".1f", 100),
    ("ffn_bytes", "bytes", "MB a token", ".3g", 1e-6),
    ("sparsity", "sparsity", "%", ".1f", 100),
    ("kl", "KL", "nats a token", ".4f", 1),
    ("perplexity_ratio", "perplexity", "times dense", ".4f", 1),
    ("disagreement", "disagree", "% of tokens", ".2f", 100),
    ("accuracy_ratio", "accuracy", "times dense", ".4f", 1),
    ("choice_accuracy", "multiple choice", "% right", ".1f", 100),
    ("cloze_accuracy", "cloze", "% right", ".1f", 100),
    ("exact_match_length", "exact match", "tokens", ".1f", 1),
)
_TOOLS = ("clada", "matplotlib", "statsmodels")


def _cell(result: Measured, metric: str, form: str, factor: float) -> dict[str, str] | None:
    estimate = result.metrics.get(metric)
    if estimate is None:
        return None
    value, low, high = (format(factor * v, form) for v in (estimate.value, estimate.low, estimate.high))
    return {"value": value, "interval": f"{low} – {high}"}


def _rows(results: Sequence[Measured]) -> list[dict[str, Any]]:
    return [
        {
            "name": result.name,
            "policy": result.policy,
            "cells": [_cell(result, metric, form, factor) for metric, _, _, form, factor in _COLUMNS],
        }
        for result in results
    ]


def _visible(text: str) -> Markup:
    """Render text as HTML with visible white space: marks are drawn by the style sheet, the characters stay."""
    marked = {" ": '<s class="sp"> </s>', "\t": '<s class="tab">\t</s>', "\n": '<s class="nl"></s>\n'}
    return Markup("").join(Markup(marked[char]) if char in marked else escape(char) for char in text)


def _fit_rows(fit: Fit) -> list[dict[str, str]]:
    return [
        {
            "name": c.name.replace(" x ", " × "),
            "value": f"{c.value:+.4f}",
            "error": f"{c.standard_error:.4f}",
            "interval": f"{c.low:+.4f} to {c.high:+.4f}",
        }
        for c in fit.coefficients
    ]


def _group(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "subtitle": group.subtitle,
        "verdict": group.verdict,
        # A curve is of several.
        "curves": svg_uri(curves_figure(group.results)) if len(group.results) > 1 else None,
        "layers": svg_uri(layers_figure(group.results)),
        "rows": _rows(group.results),
        "results": [
            {
                "name": result.name,
                "file": result.path.name,
                "policy": json.dumps(result.subject["policy"], indent=2, ensure_ascii=False),
                "data": json.dumps(result.data, indent=2, ensure_ascii=False),
            }
            for result in group.results
        ],
    }


def report_html(
    groups: Sequence[Group],
    tokens: tuple[TokenTable, Regression] | None = None,
    generated: HeatMap | None = None,
) -> str:
    """Render the page; the same content gives the same text.

    Args:
        groups: From `read_groups`.
        tokens: A table and its regression, if they are to be shown.
        generated: A text, if it is to be shown.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = _visible
    template = files("clada.evaluation").joinpath("templates", "report.html").read_text(encoding="utf-8")
    regression = None
    if tokens is not None:
        fits = [(fit, _fit_rows(fit)) for fit in (tokens[1].active, tokens[1].kl)]
        regression = {"image": svg_uri(regression_figure(*tokens)), "fits": fits, "all": tokens[1]}
    return environment.from_string(template).render(
        groups=[_group(group) for group in groups],
        columns=[(heading, unit) for _, heading, unit, _, _ in _COLUMNS],
        regression=regression,
        generated=generated,
        legend=[(place / 10, load_color(place / 10)) for place in range(11)],
        versions=tool_versions(groups),
        own_versions={name: version(name) for name in _TOOLS},
    )
