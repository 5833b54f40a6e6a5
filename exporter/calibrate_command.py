"""The `clada calibrate` command: what a model's bytes are worth, measured once for artefacts of any share of them."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clada.command_line import add_progress_options, progress
from clada.exporter.command_options import add_calibration_options, add_trust_options
from clada.exporter.settings import CALIBRATION_TOKENS, FURTHER

_SUFFIX = ".safetensors"


def write_calibration(
    output: Path,
    source: str,
    *,
    shares: Sequence[float] = (),
    data: Path | None = None,
    tokens: int = CALIBRATION_TOKENS,
    seed: int = 0,
    report: Callable[[str], None] = print,
    **trust: Any,
) -> None:
    """Calibrate a model by price, and write what was measured.

    Args:
        output: The file to write; `export` takes it as `calibration_file`.
        source: A checkpoint's folder or a Hugging Face model id.
        shares: Of all weights' bytes, to be measured beside the usual ones.
        data: See `read_documents`; the sample that ships with the project where None.
        tokens: How many tokens of it to use.
        seed: Decides which parts of the text are used.
        report: Called with each line of progress.
        trust: See `load_model`.

    Raises:
        CladaError: Anything given cannot be used, or the file cannot be written.
    """
    # What help does without is imported only for the work.
    import torch

    from clada.contract.files import check_writable
    from clada.errors import CladaError
    from clada.exporter.calibrate import prompt_tokens
    from clada.exporter.calibration_rows import calibration_rows, read_calibration_text
    from clada.exporter.calibration_text import texts_of
    from clada.exporter.checkpoint import load_config, load_model
    from clada.exporter.price_calibration import calibrate_price
    from clada.exporter.price_file import CalibratedOn, model_hash, write_price_calibration
    from clada.exporter.products import find_products

    if output.suffix != _SUFFIX:
        raise CladaError(f"the output is {output}; a calibration's name ends in {_SUFFIX}")
    for share in shares:
        if not 0 < share < 1:
            raise CladaError(f"a share of bytes is {share}; it must lie between 0 and 1, exclusive")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CladaError(f"cannot write {output}: {error.strerror or error}") from error
    check_writable(output)
    text = read_calibration_text(data)
    hf_config = load_config(source, **trust)
    model, tokenizer = load_model(source, torch.float32, **trust)
    texts = texts_of(text.documents, tokenizer)
    rows = calibration_rows(text, texts, tokenizer, hf_config, tokens, seed, report, FURTHER)
    calibration = calibrate_price(model, find_products(model), rows, prompt_tokens(rows.decoded.shape[1]), shares)
    for rung in calibration.rungs:
        report(
            f"  {rung.read:6.1%} of all weights' bytes read: KL {rung.divergence:.4f} nats a token, "
            f"{rung.agreement:.1%} of next tokens unchanged"
        )
    write_price_calibration(output, calibration, CalibratedOn(model_hash(model), text.name, text.sha256, ""))
    report(f"wrote {output}")


def _run(args: argparse.Namespace) -> None:
    write_calibration(
        args.output,
        args.model,
        shares=args.bytes,
        data=args.calibration_data,
        tokens=args.calibration_tokens,
        seed=args.seed,
        report=progress(args),
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
    )


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `clada`'s."""
    parser = commands.add_parser(
        "calibrate",
        help="measure what a checkpoint's bytes are worth, for exports with --bytes",
        description="Measure once what every input of every matrix is worth; clada-export --calibration FILE "
        "--bytes SHARE then makes an artefact of any share without measuring again.",
    )
    parser.add_argument("output", type=Path, help=f"the file to write, *{_SUFFIX}")
    parser.add_argument("--model", required=True, help="a checkpoint's folder, or a Hugging Face model id")
    parser.add_argument(
        "--bytes",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="shares of all weights' bytes to measure beside the usual ones",
    )
    add_calibration_options(parser)
    add_trust_options(parser)
    add_progress_options(parser)
    parser.set_defaults(run=_run)
