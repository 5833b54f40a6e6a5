"""The `clada inspect` command."""

import argparse
import json
from pathlib import Path


def _run(args: argparse.Namespace) -> None:
    from clada.contract.artifact import open_artifact, open_artifact_of_engine
    from clada.contract.engine_record import ENGINE_SUFFIX, read_record
    from clada.runtime.find_model import find_model
    from clada.runtime.inspection import engine_lines, facts, inspection_lines

    path = find_model(args.path)
    record = read_record(path) if path.suffix == ENGINE_SUFFIX else None
    artifact = open_artifact(path) if record is None else open_artifact_of_engine(path)
    if args.json:
        print(json.dumps(facts(artifact, record), indent=1))
    else:
        print("\n".join(inspection_lines(artifact) if record is None else engine_lines(artifact, record)))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser("inspect", help="show layers, thresholds, sparsity, ops and sizes")
    parser.add_argument("path", type=Path, help="the artifact's .onnx file or folder, or an .engine")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, for programs")
    parser.set_defaults(run=_run)
