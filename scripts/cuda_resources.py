"""Registers, spills and shared memory of each CUDA kernel on each architecture: writes the table, or compares with it.

They are what ptxas said while `make test-cuda-all` compiled, or for one architecture `make test-cuda`
(keep_ptxas_output.sh), so nothing is compiled here.
"""

import argparse
import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "plugins" / "kernels" / "cuda"
TABLE = ROOT / "benchmarks" / "cuda_resources.csv"
REWRITE = "after `make test-cuda-all`, `python scripts/cuda_resources.py` writes the table anew"

RELEASE = re.compile(r"Cuda compilation tools, release [\d.]+, V([\d.]+)")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class TableError(Exception):
    """Error that prevents writing or comparing: one line, with the remedy."""


@dataclass(frozen=True)
class Resources:
    """Resources that a kernel takes, per thread and, for shared memory, per block.

    Args:
        registers: Registers per thread.
        spilled_bytes: Stores and loads of a thread, for registers that there were too few of.
        stack_bytes: Of a thread, in local memory.
        shared_bytes: Of a block.
    """

    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int


Kernel = tuple[str, str]  # name, architecture


@dataclass(frozen=True)
class Table:
    """Resources of all kernels, and the release of nvcc that compiled them."""

    nvcc: str
    kernels: dict[Kernel, Resources]


COLUMNS = ("kernel", "architecture", *(field.name for field in fields(Resources)), "nvcc")


def readable(mangled: list[str]) -> dict[str, str]:
    """Names of kernels without namespaces and parameters: down<half, 8>."""
    try:
        result = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise TableError("c++filt is not on the PATH, which reads the kernels' names; install binutils") from error
    names = {}
    for symbol, name in zip(mangled, result.stdout.splitlines(), strict=True):
        short = name.replace("(anonymous namespace)::", "").removeprefix("void ").partition("(")[0]
        names[symbol] = re.sub(r"\b(?:\w+::)+|\b__(?:nv_)?(?=\w)", "", short)
    return names


def said(text: str) -> Iterator[tuple[str, str, Resources]]:
    """Parse the output of `ptxas -v`, by mangled name and architecture."""
    for part in text.split("ptxas info    : Compiling entry")[1:]:
        entry, used = ENTRY.search("Compiling entry" + part), USED.search(part)
        if not entry or not used:
            raise TableError(f"this release of ptxas says something else than was expected: {part.strip()[:200]!r}")
        # More than one where a function was not inlined.
        stacks = [tuple(map(int, found)) for found in STACK.findall(part)]
        shared = SHARED.search(part)
        yield (
            entry[1],
            entry[2],
            Resources(
                registers=int(used[1]),
                spilled_bytes=sum(stores + loads for _, stores, loads in stacks),
                stack_bytes=sum(stack for stack, _, _ in stacks),
                shared_bytes=int(shared[1]) if shared else 0,
            ),
        )


def compiled(build: Path) -> Table:
    """Read the resources of the last build in a folder.

    Raises:
        TableError: There is no build of every source, or not by one nvcc.
    """
    logs = {path.name: path for path in build.glob("**/clada_kernels_cuda.dir/*.ptxas")}
    releases, found = set(), []
    for source in sorted(SOURCES.glob("*.cu")):
        log = logs.get(f"{source.name}.o.ptxas")
        release = RELEASE.search(text := log.read_text()) if log else None
        if release is None:
            raise TableError(f"{build} holds nothing that ptxas said of {source.name}; run `make test-cuda-all`")
        releases.add(release[1])
        found += said(text)
    if len(releases) != 1:
        raise TableError(f"{build} was compiled by several nvcc ({', '.join(sorted(releases))}); remove it and build")
    names = readable([symbol for symbol, _, _ in found])
    kernels = {(names[symbol], architecture): resources for symbol, architecture, resources in found}
    if len(kernels) != len(found):
        raise TableError("two kernels have one name; give them different ones")
    return Table(releases.pop(), dict(sorted(kernels.items(), key=lambda item: (item[0][0], int(item[0][1][3:])))))


def table_text(table: Table) -> str:
    """Format the table as CSV."""
    out = io.StringIO()
    rows = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for (kernel, architecture), resources in table.kernels.items():
        rows.writerow({"kernel": kernel, "architecture": architecture, **asdict(resources), "nvcc": table.nvcc})
    return out.getvalue()


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        TableError: There is none, or it is not one.
    """
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        kernels = {
            (row["kernel"], row["architecture"]): Resources(**{f.name: int(row[f.name]) for f in fields(Resources)})
            for row in rows
        }
        return Table(rows[0]["nvcc"], kernels)
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise TableError(f"{path} cannot be read ({error!r}); {REWRITE}") from error


def differences(was: Table, now: Table) -> list[str]:
    """Lines for every spill and, with the same nvcc, for every difference from the table."""
    lines = []
    for (kernel, architecture), resources in now.kernels.items():
        where, before = f"{kernel} on {architecture}", was.kernels.get((kernel, architecture))
        if resources.spilled_bytes:
            usual = f"; was {before.spilled_bytes}" if before else ""
            lines.append(f"{where}: spilled_bytes is {resources.spilled_bytes}{usual}; nothing may be spilled")
        if now.nvcc != was.nvcc:
            continue
        if before is None:
            lines.append(f"{where}: is not in the table; {REWRITE}")
            continue
        for field in fields(Resources):
            old, new = getattr(before, field.name), getattr(resources, field.name)
            if old != new and field.name != "spilled_bytes":
                lines.append(f"{where}: {field.name} was {old}, is {new}; {REWRITE}")
    if now.nvcc == was.nvcc:
        gone = [key for key in was.kernels if key not in now.kernels]
        lines += [f"{kernel} on {architecture}: is not compiled any more; {REWRITE}" for kernel, architecture in gone]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda", help="folder of the build")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--architectures", nargs="+", metavar="SM", help="with --check: those compiled; default: all")
    args = parser.parse_args()
    if args.architectures and not args.check:
        parser.error("--architectures is for --check: the table is written of all")
    try:
        now = compiled(args.build)
        if not args.check:
            args.table.write_text(table_text(now))
            print(f"written: {args.table}, {len(now.kernels)} kernels by nvcc {now.nvcc}")
            return 0
        was = read_table(args.table)
        if args.architectures:
            kernels = {key: resources for key, resources in was.kernels.items() if key[1] in args.architectures}
            was = replace(was, kernels=kernels)
        lines = differences(was, now)
    except TableError as error:
        lines = [str(error)]
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    if lines:
        return 1
    if now.nvcc != was.nvcc:
        print(f"nvcc is {now.nvcc}, the table's was {was.nvcc}: compared for spills only")
    print(f"{len(now.kernels)} kernels: nothing is spilled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
