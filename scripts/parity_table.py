"""Writes docs/model-types.md: every causal model type of transformers, and the tolerance each path of it needed.

A path is a type, a dtype, and what runs the graph. The figures are recorded by tests/exporter/test_every_type.py, which
exports tiny random models; this runs its cases, an hour on two cores, or reads what an earlier run wrote with
`--junitxml`.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from recorded_runs import ROOT, Recorded, TableError, recorded, run_tests

PAGE = ROOT / "docs" / "model-types.md"
TESTS = "tests/exporter/test_every_type.py"
# Properties by which the tests record their results; those of paths hold how far two sides are apart.
TYPE, DTYPE, REFUSED, PATH = "model type", "dtype", "refused", "path: "
DTYPES = ("float32", "float16")
INTRODUCTION = """
# Model types

Dense decoders of every type are exported to skip inputs, by what they are made of and not by a list. A model is taken
whose matrices are all linear layers or embeddings, which reads no later token, and which keeps keys and values of
each token. Then the export compares its graph with PyTorch, and writes nothing where they disagree. Neurons are
skipped in the families of [`clada export --help`](reference/cli.md).

Tests go through all {types} types of transformers {version} with tiny random models: {exported} are exported and run,
the others refused in one line. `python scripts/parity_table.py` runs them all and writes this page.
"""
TABLES = """
## Exported

The largest difference of a logit, as a share of the range of the logits. **Sparse, bodies** and **sparse, native**:
prefill and four steps of decode at 60% of all bytes, and a step at the end of the context, against PyTorch computing
with the same inputs left out; the native graph has its cache in place where that column says so. **All bytes**: 64
steps of decode of one text and of three of different lengths, on native kernels and on function bodies, against
Hugging Face's own pass over each whole text. **failed**: the export refuses it, as that is more than it allows.
"""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _rows(tests: Sequence[Recorded], dtype: str) -> Iterable[str]:
    of_dtype = sorted(
        (test for test in tests if test.properties.get(DTYPE) == dtype), key=lambda test: test.properties[TYPE]
    )
    paths = list(dict.fromkeys(name for test in of_dtype for name in test.properties if name.startswith(PATH)))
    yield f"| {dtype} | " + " | ".join(name.removeprefix(PATH) for name in paths) + " |"
    yield "|---|" + "---:|" * len(paths)
    for test in of_dtype:
        cells = [test.properties.get(name, "**failed**" if test.outcome == "failed" else "") for name in paths]
        yield f"| {test.properties[TYPE]} | " + " | ".join(map(_cell, cells)) + " |"


def page(tests: Sequence[Recorded]) -> str:
    """Format the page.

    Raises:
        TableError: No type was exported or none refused.
    """
    exported = [test for test in tests if DTYPE in test.properties]
    refused = [test for test in tests if REFUSED in test.properties]
    if not exported or not refused:
        raise TableError(f"not all cases were run: pytest {TESTS} -m '' runs them")
    names = {test.properties[TYPE] for test in exported}
    lines = [
        INTRODUCTION.strip().format(
            types=len(names) + len(refused), version=version("transformers"), exported=len(names)
        ),
        "",
        TABLES.strip(),
    ]
    for dtype in DTYPES:
        lines += ["", *_rows(exported, dtype)]
    lines += ["", "## Refused", "", "| type | why |", "|---|---|"]
    lines += [f"| {test.properties[TYPE]} | {_cell(test.properties[REFUSED])} |" for test in refused]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--junitxml", type=Path, nargs="+", help="read these instead of running the tests")
    parser.add_argument("--output", type=Path, default=PAGE, help="default: %(default)s")
    args = parser.parse_args()
    try:
        files = args.junitxml or []
        runs = [path.read_text(encoding="utf-8") for path in files] or [run_tests([TESTS, "-m", "", "-n", "2"])]
        # A later run's takes an earlier one's place.
        tests = list({test.name: test for test in recorded(runs)}.values())
        args.output.write_text(page(tests), encoding="utf-8")
    except (TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {args.output}")
    return int(any(test.outcome == "failed" for test in tests))


if __name__ == "__main__":
    sys.exit(main())
