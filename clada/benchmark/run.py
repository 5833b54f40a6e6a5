"""Body of `clada bench`: choose, measure, print and write."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clada.benchmark.artifact_tables import artifact_tables
from clada.benchmark.equal_quality import equal_quality_lines
from clada.benchmark.genai import genai_tables
from clada.benchmark.genai_files import require_genai
from clada.benchmark.machine import machine
from clada.benchmark.plot import plot
from clada.benchmark.quality_plot import quality_plot
from clada.benchmark.results import Measured, Results, json_text
from clada.benchmark.settings import PLOT_FORMATS, ArtifactSettings, BenchSettings, checked
from clada.benchmark.shapes import SHAPES, TINY, Shape, chosen_shapes
from clada.benchmark.tables import layer_tables, linears_tables, model_tables
from clada.benchmark.targets import target_lines, targets
from clada.contract.files import check_writable, write
from clada.errors import CladaError
from clada.exporter.calibration.text import read_texts, sample_file
from clada.runtime.terminal import read_prompt

_MEASURES: dict[str, Callable[[Shape, BenchSettings], Iterator[Measured]]] = {
    "layer": layer_tables,
    "linears": linears_tables,
    "model": model_tables,
    "genai": genai_tables,
}


def _check_outputs(json_file: Path | None, plot_file: Path | None) -> None:
    if plot_file is not None and plot_file.suffix not in PLOT_FORMATS:
        raise CladaError(f"cannot plot to {plot_file}: its suffix must be one of {', '.join(PLOT_FORMATS)}")
    for path in (json_file, plot_file):
        if path is not None:
            check_writable(path)


# Options of an artifact, and of random weights: those of the other kind are not to be passed over in silence.
_OF_ARTIFACT = ("bytes", "context", "prompt_file", "gguf", "reference", "data")
_OF_SHAPES = ("shape", "what", "active", "weights")


def _check_kind(args: argparse.Namespace) -> None:
    others, reason = (
        (_OF_ARTIFACT, "is of an artifact, and none is given")
        if not args.paths
        else (_OF_SHAPES, f"is of random weights, and {args.paths[0]} is given")
    )
    for name in others:
        if getattr(args, name) is not None:
            raise CladaError(f"--{name.replace('_', '-')} {reason}: leave one of them out")


def _artifact_settings(args: argparse.Namespace) -> ArtifactSettings:
    text = read_texts(sample_file())[0] if args.prompt_file is None else read_prompt(args.prompt_file)
    given = {"shares": args.bytes, "contexts": args.context, "ggufs": args.gguf}
    options: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values is not None}
    return ArtifactSettings(tuple(args.paths), text, reference=args.reference, data=args.data, **options)


def _measured(args: argparse.Namespace, settings: BenchSettings) -> Iterator[Measured]:
    """Yield what the command line asks for, one table or list after the other."""
    if args.paths:
        yield from artifact_tables(_artifact_settings(args), settings)
        return
    real = [name for name in SHAPES if name != TINY]
    chosen = chosen_shapes(args.shape or real, args.what)
    if any("genai" in whats for _, whats in chosen):
        require_genai()
    for shape, whats in chosen:
        for what in whats:
            yield from _MEASURES[what](shape, settings)


def bench(args: argparse.Namespace) -> None:
    """Run the benchmark that the command line asks for."""
    _check_kind(args)
    active, weights = tuple(args.active or BenchSettings.active), tuple(args.weights or BenchSettings.weights)
    settings = checked(BenchSettings(active, weights, args.threads, args.rounds))
    _check_outputs(args.json, args.plot)
    here = machine()
    versions = f"ONNX Runtime {here['versions']['onnxruntime']}, kernels for {here['kernels']}"
    subtitle = f"{here['processor']}, {settings.threads} threads, {versions}"
    results = Results(here, asdict(settings))
    print(f"{subtitle}; medians of {settings.rounds} rounds, of {settings.prefill_rounds} in prefill")
    for measured in _measured(args, settings):
        print("\n" + "\n".join(results.add(measured)), flush=True)
    if lines := equal_quality_lines(results.tables, results.qualities):
        print("\n" + "\n".join(lines))
    found = targets(results.tables, results.footprints)
    if found:
        print("\n" + "\n".join(target_lines(found)))
    if args.json is not None:
        write(args.json, json_text(results, found).encode())
    if args.plot is not None:
        form = args.plot.suffix
        if results.qualities.of:
            image = quality_plot(results.tables[0], results.qualities, subtitle, form)
        else:
            image = plot(results.tables, subtitle, form)
        write(args.plot, image)
