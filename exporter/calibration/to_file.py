"""`clada.calibrate`: measure the worth of a model's bytes once, for artifacts of any share of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clada.contract.files import check_writable
from clada.errors import CladaError
from clada.exporter.calibration.calibrate import prompt_tokens
from clada.exporter.calibration.price_calibration import calibrate_price
from clada.exporter.calibration.price_file import CalibratedOn, write_price_calibration
from clada.exporter.calibration.rows import calibration_rows, read_calibration_text
from clada.exporter.calibration.text import texts_of
from clada.exporter.defaults import CALIBRATION_SUFFIX, CALIBRATION_TOKENS, FURTHER
from clada.exporter.model.checkpoint import load_config, load_model
from clada.exporter.model.hashes import model_hash
from clada.exporter.model.products import find_products


def calibrate(
    output: Path,
    source: str,
    *,
    shares: Sequence[float] = (),
    data: Path | None = None,
    tokens: int = CALIBRATION_TOKENS,
    seed: int = 0,
    report: Callable[[str], None] = print,
    **reading: Any,
) -> None:
    """Calibrate a model by price, and write the measurements to a file.

    Args:
        output: The file to write; `export` takes it as `calibration_file`.
        source: A checkpoint's folder, a GGUF file or a Hugging Face model id.
        shares: Shares of all weights' bytes to measure beside the usual ones.
        data: See `read_documents`; the sample that ships with the project where None.
        tokens: Number of tokens of it to use.
        seed: Decides which parts of the text are used.
        report: Called with each line of progress.
        reading: Options of `load_model`.

    Raises:
        CladaError: Anything given cannot be used, or the file cannot be written.
    """
    if output.suffix != CALIBRATION_SUFFIX:
        raise CladaError(f"the output is {output}; a calibration's name ends in {CALIBRATION_SUFFIX}")
    for share in shares:
        if not 0 < share < 1:
            raise CladaError(f"a share of bytes is {share}; it must lie between 0 and 1, exclusive")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CladaError(f"cannot write {output}: {error.strerror or error}") from error
    check_writable(output)
    text = read_calibration_text(data)
    hf_config = load_config(source, **reading)
    model, tokenizer = load_model(source, torch.float32, held=True, **reading)
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
