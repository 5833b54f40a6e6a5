"""The `clada bench` command."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from clada.benchmark.footprint import Footprint, footprint_lines
from clada.benchmark.genai import genai_tables
from clada.benchmark.genai_files import require_genai
from clada.benchmark.machine import machine
from clada.benchmark.plot import FORMATS, plot
from clada.benchmark.precisions import OF_MODELS, PRECISIONS
from clada.benchmark.report import Table, json_text, table_lines
from clada.benchmark.settings import Settings, checked
from clada.benchmark.shapes import SHAPES, TINY, Shape, chosen_shapes
from clada.benchmark.tables import layer_tables, model_tables
from clada.benchmark.targets import target_lines, targets
from clada.exporter.output import check_writable, write
from clada.plugins.errors import CladaError

_MEASURES: dict[str, Callable[[Shape, Settings], Iterator[Table | list[Footprint]]]] = {
    "layer": layer_tables,
    "model": model_tables,
    "genai": genai_tables,
}


def _check_outputs(json_file: Path | None, plot_file: Path | None) -> None:
    if plot_file is not None and plot_file.suffix not in FORMATS:
        raise CladaError(f"cannot plot to {plot_file}: its suffix must be one of {', '.join(FORMATS)}")
    for path in (json_file, plot_file):
        if path is not None:
            check_writable(path)


def _run(args: argparse.Namespace) -> None:
    settings = checked(Settings(tuple(args.active), tuple(args.weights), args.threads, args.rounds))
    chosen = chosen_shapes(args.shape, args.what)
    if any("genai" in whats for _, whats in chosen):
        require_genai()
    _check_outputs(args.json, args.plot)
    here = machine()
    versions = f"ONNX Runtime {here['versions']['onnxruntime']}, kernels for {here['kernels']}"
    subtitle = f"{here['processor']}, {settings.threads} threads, {versions}"
    print(f"{subtitle}; medians of {settings.rounds} rounds, of {settings.prefill_rounds} in prefill")
    tables: list[Table] = []
    footprints: list[Footprint] = []
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


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "bench",
        help="time the ops and whole models against ONNX Runtime's dense graphs",
        description="Time random weights of real shapes: our ops dense and sparse, ONNX Runtime's dense graph in "
        "float32 and quantised, and torch, in turns in one process; and the floor, the time it takes to read what must "
        "be read. A whole model takes several times its size in memory and on disk.",
    )
    real = [name for name in SHAPES if name != TINY]
    parser.add_argument(
        "--shape", nargs="+", default=real, metavar="NAME", help=f"of {', '.join(SHAPES)} (default: all but {TINY})"
    )
    parser.add_argument(
        "--what",
        nargs="+",
        choices=list(_MEASURES),
        help="layer and model, where a shape has one, by default; genai decodes a whole int4 model with 40%% of "
        "neurons active against onnxruntime-genai's generator, and compares how they load",
    )
    parser.add_argument(
        "--active",
        nargs="+",
        type=float,
        default=list(Settings.active),
        metavar="SHARE",
        help="shares of neurons that stay active (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=PRECISIONS,
        default=list(PRECISIONS),
        help="precisions that are compared, beside the dense graph in float32; of a whole model only "
        f"{', '.join(OF_MODELS)} (default: all)",
    )
    parser.add_argument("--threads", type=int, default=Settings.threads, help="0 is one a core (default)")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios, as .png or .svg")
    parser.set_defaults(run=_run)
