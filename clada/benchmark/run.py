"""Body of `clada bench`: choose, measure, print and write."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from clada.benchmark.footprint import Footprint, footprint_lines
from clada.benchmark.genai import genai_tables
from clada.benchmark.genai_files import require_genai
from clada.benchmark.machine import machine
from clada.benchmark.plot import plot
from clada.benchmark.report import Table, json_text, table_lines
from clada.benchmark.settings import CONTEXT, PLOT_FORMATS, SHARES, BenchSettings, checked
from clada.benchmark.shapes import SHAPES, TINY, Shape, chosen_shapes
from clada.benchmark.shares_of_bytes import artifact_table
from clada.benchmark.tables import layer_tables, linears_tables, model_tables
from clada.benchmark.targets import target_lines, targets
from clada.contract.files import check_writable, write
from clada.errors import CladaError
from clada.exporter.calibration.text import read_texts, sample_file
from clada.runtime.terminal import read_prompt

_MEASURES: dict[str, Callable[[Shape, BenchSettings], Iterator[Table | list[Footprint]]]] = {
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
_OF_ARTIFACT, _OF_SHAPES = ("bytes", "context", "prompt_file"), ("shape", "what", "active", "weights")


def _check_kind(args: argparse.Namespace) -> None:
    others, reason = (
        (_OF_ARTIFACT, "is of an artifact, and none is given")
        if args.path is None
        else (_OF_SHAPES, f"is of random weights, and {args.path} is given")
    )
    for name in others:
        if getattr(args, name) is not None:
            raise CladaError(f"--{name.replace('_', '-')} {reason}: leave one of them out")


def _of_artifact(args: argparse.Namespace, settings: BenchSettings) -> Table:
    text = read_texts(sample_file())[0] if args.prompt_file is None else read_prompt(args.prompt_file)
    context = CONTEXT if args.context is None else args.context
    return artifact_table(args.path, args.bytes or SHARES, context, text, settings)


def bench(args: argparse.Namespace) -> None:
    """Run the benchmark that the command line asks for."""
    _check_kind(args)
    active, weights = tuple(args.active or BenchSettings.active), tuple(args.weights or BenchSettings.weights)
    settings = checked(BenchSettings(active, weights, args.threads, args.rounds))
    real = [name for name in SHAPES if name != TINY]
    chosen = chosen_shapes(args.shape or real, args.what) if args.path is None else []
    if any("genai" in whats for _, whats in chosen):
        require_genai()
    _check_outputs(args.json, args.plot)
    here = machine()
    versions = f"ONNX Runtime {here['versions']['onnxruntime']}, kernels for {here['kernels']}"
    subtitle = f"{here['processor']}, {settings.threads} threads, {versions}"
    print(f"{subtitle}; medians of {settings.rounds} rounds, of {settings.prefill_rounds} in prefill")
    tables: list[Table] = []
    footprints: list[Footprint] = []
    if args.path is not None:
        tables.append(_of_artifact(args, settings))
        print("\n" + "\n".join(table_lines(tables[0])), flush=True)
    for shape, whats in chosen:
        for what in whats:
            for measured in _MEASURES[what](shape, settings):
                if isinstance(measured, Table):
                    tables.append(measured)
                    lines = table_lines(measured)
                else:
                    footprints += measured
                    lines = footprint_lines(measured)
                print("\n" + "\n".join(lines), flush=True)
    found = targets(tables, footprints)
    if found:
        print("\n" + "\n".join(target_lines(found)))
    if args.json is not None:
        write(args.json, json_text(tables, footprints, found, here, asdict(settings)).encode())
    if args.plot is not None:
        write(args.plot, plot(tables, subtitle, args.plot.suffix))
