"""Suite from end to end: find the card, build, check, time, write."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from clada.benchmark.report import Table
from clada.benchmark.settings import BenchSettings, checked
from clada.benchmark.shapes import SHAPES, TINY, Shape, chosen_shapes
from clada.contract.files import check_writable, write
from clada.errors import CladaError
from gpu_suite.build import CUSTOM_OPS, KERNELS, Libraries, built_elsewhere, built_here, missing, nvcc_path
from gpu_suite.checks import Check, real_checks, sample_checks
from gpu_suite.device import CUDA, find_card
from gpu_suite.kernels import Kernels, load
from gpu_suite.plugins import Plugins, load_plugins, plugin_checks
from gpu_suite.report import (
    MODEL,
    Report,
    json_text,
    machine,
    markdown,
    parity,
    parity_lines,
    table_lines,
    target_lines,
    targets,
)
from gpu_suite.timing import LeftOut, Timing, copy_bandwidth, tables

PARTS = ("parity", "tensorrt", "kernels", "model")
_WHOLE_SHAPES = ("llama-3.2-1b", TINY)


def _checked(checks: Iterable[Check]) -> list[Check]:
    """Run the checks, and print a failure at once."""
    done = []
    for check in checks:
        done.append(check)
        if not check.passed:
            print(f"FAILED {check.subject}: {check.what}: {check.error:.3g}, allowed {check.allowed:.3g}", flush=True)
    return done


def check_kernels(kernels: Kernels, shapes: Sequence[Shape]) -> Report:
    """Check the correctness of every op: sample cases, then the sizes of these models."""
    samples = _checked(sample_checks(kernels))
    found = parity([*samples, *_checked(real_checks(kernels, shapes))])
    print("\n".join(parity_lines(found)), flush=True)
    return Report({}, {}, parity=tuple(found))


def check_plugins(plugins: Plugins | LeftOut) -> Report:
    """Check the correctness of TensorRT's plugins, or report why they are not called."""
    if isinstance(plugins, LeftOut):
        print(f"left out: {plugins.what}: {plugins.why}", flush=True)
        return Report({}, {}, left_out=(plugins,))
    print(f"plugins of clada {plugins.release}", flush=True)
    found = parity(_checked(plugin_checks(plugins)))
    print("\n".join(parity_lines(found)), flush=True)
    return Report({}, {}, parity=tuple(found))


def timed(results: Iterable[Table | LeftOut]) -> Report:
    """Run the timings, and print each result at once."""
    found: list[Table] = []
    left_out: list[LeftOut] = []
    for result in results:
        if isinstance(result, LeftOut):
            left_out.append(result)
            print(f"\nleft out: {result.what}: {result.why}", flush=True)
            continue
        found.append(result)
        print("\n" + "\n".join(table_lines([result])), flush=True)
    return Report({}, {}, tables=tuple(found), left_out=tuple(left_out))


def time_kernels(timing: Timing, shapes: Sequence[Shape]) -> Report:
    """Time every op at the sizes of these models."""
    return timed(tables(timing, shapes))


def whole_models(
    root: Path | None, libraries: Libraries, timing: Timing, shapes: list[Shape]
) -> Iterator[Table | LeftOut]:
    """Time whole models, those of the shapes that are measured whole.

    Args:
        root: The checkout that the libraries are built from; None where they were built elsewhere.
        libraries: Of ONNX Runtime's custom ops.
        timing: How.
        shapes: What the suite was asked for.
    """
    chosen = [shape for shape in shapes if shape.name in _WHOLE_SHAPES]
    if not chosen:
        return
    wants = missing(root)
    if wants:
        yield LeftOut(MODEL, f"it needs more than this machine has: {wants}")
        return
    try:
        # Only now: the machine need not have what these import.
        from clada.plugins.onnxruntime import use_library
        from clada.runtime.models.ort_cuda_session import check_cuda
        from gpu_suite.models import model_tables, written_model

        if timing.kernels.device.name == "cuda":
            check_cuda()
            use_library("cuda", libraries(CUSTOM_OPS))
        fractions = [fraction for fraction in timing.fractions if fraction < 1]
        bandwidth = copy_bandwidth(timing.kernels.device, timing.cache_bytes)
        for shape in chosen:
            with written_model(shape, fractions) as files:
                yield from model_tables(timing, files, shape, bandwidth)
    except (CladaError, ImportError) as error:
        yield LeftOut(MODEL, str(error).splitlines()[0])


def together(report: Report, part: Report) -> Report:
    """Report extended by the results of a part of the suite."""
    return replace(
        report,
        parity=report.parity + part.parity,
        tables=report.tables + part.tables,
        left_out=report.left_out + part.left_out,
    )


def save(report: Report, path: Path) -> None:
    """Write the report as JSON, and as Markdown beside it."""
    write(path, json_text(report).encode())
    write(path.with_suffix(".md"), markdown(report).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Build the CUDA kernels for this machine's GPU with nvcc, check them against the float64 "
        "references, and time them against cuBLAS and the card's copy bandwidth. Fails where a check fails, not "
        "where a speed is not reached."
    )
    real = [name for name in SHAPES if name != TINY]
    parser.add_argument("--shape", nargs="+", default=real, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--plugins",
        type=Path,
        metavar="FILE",
        help="a library of TensorRT plugins to call; default: one of this checkout, where TENSORRT_INCLUDE_DIR is set",
    )
    parser.add_argument(
        "--libraries",
        type=Path,
        metavar="FOLDER",
        help="libraries that were built for this card on another machine; default: this checkout's, built here",
    )
    parser.add_argument("--rounds", type=int, default=Timing.rounds, help="default: %(default)s")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: benchmarks/gpu/CARD.json; CARD.md beside it"
    )
    return parser


def run(root: Path, arguments: Sequence[str] | None = None) -> bool:
    """Run the suite.

    Args:
        root: The checkout.
        arguments: Arguments of the command line; those of this process where None.

    Returns:
        Whether every check passed.

    Raises:
        CladaError: There is no card, driver, compiler or torch for it, or a wrong argument.
    """
    args = _parser().parse_args(arguments)
    shapes = [shape for shape, _ in chosen_shapes(args.shape, None)]
    rounds = checked(BenchSettings(rounds=args.rounds)).rounds
    card = find_card()
    if args.libraries is None:
        nvcc_path()
    path = args.json or root / "benchmarks" / "gpu" / f"{card.file_name}.json"
    if args.json is None:
        path.parent.mkdir(exist_ok=True)
    check_writable(path)
    if args.libraries is None:
        libraries = built_here(root, card.architecture, root / "build" / "gpu" / card.architecture)
    else:
        libraries = built_elsewhere(args.libraries)
    kernels = load(libraries(KERNELS), CUDA)
    plugins = load_plugins(libraries, args.plugins, CUDA)
    timing = Timing(kernels, card.l2_bytes, lambda: torch.cuda.mem_get_info()[0], rounds=rounds)
    settings = {
        "shapes": args.shape,
        "rounds": rounds,
        "active": timing.fractions,
        "elements": timing.elements,
        "quantized": timing.quantized,
    }
    report = Report(machine(card, root), settings)
    print(f"{card.name}, {card.architecture}, {card.memory_bytes / 1e9:.0f} GB, driver {card.driver}", flush=True)
    parts = {
        "parity": lambda: check_kernels(kernels, shapes),
        "tensorrt": lambda: check_plugins(plugins),
        "kernels": lambda: time_kernels(timing, shapes),
        "model": lambda: timed(whole_models(None if args.libraries else root, libraries, timing, shapes)),
    }
    for name in args.parts:
        print(f"\n{name}", flush=True)
        report = together(report, parts[name]())
        # After each part, so that none is lost where a later one fails.
        save(report, path)
    print("\n" + "\n".join(target_lines(targets(report.tables))))
    print(f"written: {path} and {path.with_suffix('.md')}")
    return report.passed


def main(root: Path) -> None:
    """Entry point of the command.

    Raises:
        CladaError: It cannot run here, or a check failed.
    """
    if not run(root):
        raise CladaError("a check failed: the kernels do not compute what the reference does; see above")
