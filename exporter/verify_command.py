"""The `clada verify` command: compare an artifact with the checkpoint it was made from."""

import argparse
from pathlib import Path
from typing import Any

from clada.command_line import add_quiet
from clada.exporter.command_options import add_checkpoint_options, checkpoint_options


def verify_artifact(artifact_model: Path, source: str, **reading: Any) -> None:
    """Print the comparison of an artifact with a checkpoint.

    Raises:
        CladaError: Either cannot be used, they do not belong together, or they disagree.
    """
    # What help does without is imported only for the work.
    import torch

    from clada.contract.artifact import open_artifact
    from clada.errors import CladaError
    from clada.exporter.calibration.text import read_texts, sample_file
    from clada.exporter.from_artifact import make_sparse
    from clada.exporter.model.calibrated import Calibrated
    from clada.exporter.model.checkpoint import load_model
    from clada.exporter.verify import check_lines, require_passed, verification_rows, verify
    from clada.runtime.models.ort_cpu import older_than

    artifact = open_artifact(artifact_model)
    manifest = artifact.manifest
    dtype, by_input = getattr(torch, manifest.model.dtype), manifest.inputs is not None
    model, tokenizer = load_model(source, dtype, held=by_input, **reading)
    for name, theirs in (("family", model.config.model_type), ("vocabulary_size", model.config.vocab_size)):
        ours = getattr(manifest.model, name)
        if ours != theirs:
            raise CladaError(f"{artifact_model} has {name} {ours}, but {source} has {theirs}")
    make_sparse(model, artifact)
    rows = verification_rows(read_texts(sample_file()), tokenizer, model.config.vocab_size)
    in_place = artifact.in_place_model
    if in_place is not None and older_than(artifact.in_place_needs):
        print(f"{in_place.name} is not compared: it needs ONNX Runtime {artifact.in_place_needs}")
        in_place = None
    checks = verify(artifact.model, model, Calibrated.from_graph(artifact.model), rows, in_place)
    print("\n".join(check_lines(checks)))
    require_passed(checks)


def _run(args: argparse.Namespace) -> None:
    from clada.runtime.find_model import find_model

    verify_artifact(find_model(args.path), args.model, **checkpoint_options(args))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser("verify", help="compare an artifact with the checkpoint it was made from")
    parser.add_argument("path", type=Path, help="the artifact's .onnx file or folder")
    parser.add_argument("--model", required=True, help="the checkpoint's folder, or a Hugging Face model id")
    add_checkpoint_options(parser)
    add_quiet(parser)
    parser.set_defaults(run=_run)
