"""Export from end to end: load, calibrate, patch, trace, verify, write."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir
import torch

from clada.contract.artifact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, in_place_name
from clada.contract.manifest import CalibrationSection
from clada.errors import CladaError
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.kept import kept_path
from clada.exporter.calibration.policies import POLICIES
from clada.exporter.calibration.rows import CalibrationRows, calibration_rows, read_calibration_text
from clada.exporter.calibration.text import texts_of
from clada.exporter.defaults import (
    BYTES_POLICY,
    CALIBRATION_TOKENS,
    COMPUTES_IN,
    DEFAULT_OPSET,
    DEFAULT_QUANTIZED_OPSET,
    DTYPES,
    FORMATS,
    FURTHER,
    READING_OPTIONS,
)
from clada.exporter.graph.ort_attention import minimum_onnxruntime
from clada.exporter.graph.trace import check_opset, save, save_in_place, trace
from clada.exporter.manifest_sections import model_section, policy_section, quantization_section, write_manifest
from clada.exporter.model.checkpoint import load_config, load_model, parameter_count, stored_as
from clada.exporter.model.families import activation_of
from clada.exporter.model.sparse_sites import sparse_sites
from clada.exporter.neuron_export import calibrate_neurons
from clada.exporter.prepared import Prepared
from clada.exporter.price_export import calibrate_inputs, take_inputs
from clada.exporter.quantization.kept_rounding import rounded_path
from clada.exporter.quantization.narrow_weights import WEIGHTS_IN
from clada.exporter.quantization.quantize import QuantizationConfig
from clada.exporter.staging import staged
from clada.exporter.verify import check_lines, require_passed, verification_rows, verify
from clada.runtime.models.ort_cpu import older_than


@dataclass(frozen=True)
class ExportConfig:
    """Options of an export.

    Args:
        calibration: Goal of the calibration.
        calibration_file: File of the model by `clada calibrate`, for a goal of bytes; measured anew where None.
        calibration_data: See read_documents; the sample that ships with the project where not given. With a file it is
            for a way to quantize that follows text.
        calibration_tokens: Number of tokens of it to use.
        seed: Decides which parts of the text are used.
        dtype: Type of the weights, one of DTYPES; bfloat16 ones are multiplied in float32, and are for a goal of bytes.
        quantize: One of FORMATS, what weights are rounded to before anything is calibrated; None for as they are.
        block_size: See QuantizationConfig.
        quantize_method: See QuantizationConfig.
        opset: Version of ONNX's standard ops; None for the default, which depends on whether weights are quantized.
        all_logits: Give logits for all positions, not only the last.
        overwrite: Replace an artifact that is there.
        adapter: Folder of a LoRA adapter to merge into the model.
        trust_remote_code: Run code that the checkpoint brings.
        allow_pickle: Read pickle weights where there are no safetensors.
    """

    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    calibration_file: Path | None = None
    calibration_data: Path | None = None
    calibration_tokens: int = CALIBRATION_TOKENS
    seed: int = 0
    dtype: str = "float32"
    quantize: str | None = None
    block_size: int = QuantizationConfig.block_size
    quantize_method: str = QuantizationConfig.method
    opset: int | None = None
    all_logits: bool = False
    overwrite: bool = False
    adapter: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        check_opset(self.graph_opset, self.quantize is not None)
        if self.quantize is None:
            usual = QuantizationConfig()
            for name, value in (("block_size", usual.block_size), ("quantize_method", usual.method)):
                if getattr(self, name) != value:
                    raise CladaError(f"{name} is {getattr(self, name)}, and nothing is quantized: pass quantize too")
        elif self.quantize not in FORMATS:
            raise CladaError(f"quantize is '{self.quantize}'; it must be one of {', '.join(FORMATS)}")
        _ = self.quantization  # checks the others
        if self.calibration_file is not None:
            if not self.calibration.skips_inputs:
                raise CladaError("a calibration file is for a goal of bytes, and of no other")
            if self.calibration_data is not None and not self.rounds_by_text:
                raise CladaError("a calibration file is given, and text to calibrate on too: leave one of them out")
            if self.calibration.rules != POLICIES[BYTES_POLICY]:
                raise CladaError(
                    f"a calibration file is measured with all of the policy {BYTES_POLICY}, and parts of it are left "
                    "out: calibrate anew, without the file"
                )
        if self.dtype not in DTYPES:
            raise CladaError(f"dtype '{self.dtype}' is not one of {', '.join(DTYPES)}")
        if self.narrow:
            self._check_narrow()
        if self.calibration_tokens < 1:
            raise CladaError(f"calibration_tokens is {self.calibration_tokens}; it must be at least 1")
        if self.seed < 0:
            raise CladaError(f"seed is {self.seed}; it must be 0 or more")

    def _check_narrow(self) -> None:
        if self.quantize is not None:
            raise CladaError(
                f"weights cannot be in {self.dtype} and quantized to {self.quantize} too: leave out one of dtype and "
                "quantize"
            )
        if not self.calibration.skips_inputs:
            raise CladaError(
                f"dtype {self.dtype} is for a goal of bytes, and the goal is {self.calibration.goal.name}: choose "
                "float16, or bytes"
            )

    @property
    def narrow(self) -> bool:
        """Whether weights are in a narrower type than what is computed with them."""
        return COMPUTES_IN[self.dtype] != self.dtype

    @property
    def rounds_by_text(self) -> bool:
        """Whether the rounding of weights depends on calibration text."""
        return self.quantization is not None and self.quantization.follows_text

    @property
    def graph_opset(self) -> int:
        """Opset of the graph."""
        default = DEFAULT_OPSET if self.quantize is None else DEFAULT_QUANTIZED_OPSET
        return default if self.opset is None else self.opset

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Format of the quantized weights; None where they are not quantized."""
        if self.quantize is None:
            return None
        return QuantizationConfig(FORMATS[self.quantize], self.block_size, self.quantize_method)


def _write_companions(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write tokenizer, chat template and configurations, as the runtime reads them."""
    aside = folder / "tokenizer"
    tokenizer.save_pretrained(aside)
    for name in (TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, CHAT_TEMPLATE_NAME):
        if (aside / name).exists():
            (aside / name).replace(folder / name)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _write_in_place(traced: Callable[[], onnx_ir.Model], model: Path, report: Callable[[str], None]) -> str | None:
    """Write the graph with an in-place cache, if the model has one; returns the ONNX Runtime it needs."""
    try:
        in_place = traced()
    except CladaError as error:
        report(f"  no graph with an in-place cache: {error}")
        return None
    needed = minimum_onnxruntime(in_place)
    if older_than(needed):
        report(f"  no graph with an in-place cache: it needs ONNX Runtime {needed}, and cannot be verified here")
        return None
    save_in_place(in_place, model)
    return needed


@contextmanager
def _names_what_is_kept(output: Path) -> Iterator[list[Path]]:
    """Name the kept files of the list in an error within the context; without an error, remove all that are kept."""
    kept: list[Path] = []
    try:
        yield kept
    except CladaError as error:
        if not kept:
            raise
        raise CladaError(
            f"{error}; the calibration is kept in {kept[0]}, and the same command, run again, goes on from there"
        ) from error
    for path in (*kept, rounded_path(output)):
        path.unlink(missing_ok=True)


def export(
    output: Path, source: str, config: ExportConfig | None = None, report: Callable[[str], None] = print
) -> CalibrationSection:
    """Export a Hugging Face causal LM as an artifact.

    Args:
        output: Path of the ONNX file; the artifact's other files are written beside it.
        source: A checkpoint's folder, a GGUF file or a Hugging Face model id.
        config: Options of the export.
        report: Called with each line of progress.

    Returns:
        Calibration text, and the measurements on it.

    Raises:
        CladaError: Anything given cannot be used, or the exported graph disagrees with the model; nothing is
            written then.
    """
    config = config or ExportConfig()
    reading = {name: getattr(config, name) for name in READING_OPTIONS}
    with _names_what_is_kept(output) as kept, staged(output, config.overwrite) as folder:
        hf_config = load_config(source, **reading)
        if not config.calibration.skips_inputs:
            activation_of(hf_config)  # raises where neurons cannot be skipped, before anything is loaded
        text = read_calibration_text(config.calibration_data)
        model, tokenizer = load_model(source, torch.float32, held=config.calibration.skips_inputs, **reading)
        texts = texts_of(text.documents, tokenizer)
        parameters = parameter_count(hf_config, config.trust_remote_code)
        stored = stored_as(source, hf_config)
        report(
            f"{hf_config.model_type}, {parameters:,} parameters"
            + ("" if stored is None else f", dequantized from {stored}")
        )
        drawn = functools.partial(
            calibration_rows, text, texts, tokenizer, hf_config, config.calibration_tokens, config.seed, report
        )
        if config.calibration_file is None:
            rows = drawn(further=FURTHER if config.calibration.skips_inputs else 0)
            prepared = _prepared(model, rows, config, (text.name, text.sha256), output, report)
            kept.append(kept_path(output))
        else:
            report(f"calibrated by {config.calibration_file}")
            rounded_on = drawn(what="rounding weights").decoded if config.rounds_by_text else None
            prepared = take_inputs(
                model,
                config.calibration_file,
                config.calibration.goal.value,
                config.quantization,
                config.narrow,
                rounded_on,
                rounded_path(output),
                report,
            )

        dtype = getattr(torch, COMPUTES_IN[config.dtype])
        if dtype != model.dtype:
            del model  # one at a time is in memory
            # Read anew: transformers keeps some of it in float32, unlike a cast.
            model, _ = load_model(source, dtype, **reading)
        # Neurons are calibrated in a patched model, inputs in one that is not.
        if not sparse_sites(model):
            prepared.patch(model)
        opset = config.graph_opset
        report(f"tracing, opset {opset}, {config.dtype}")
        staged_model = folder / output.name
        traced = functools.partial(
            trace,
            model,
            prepared.calibrated,
            opset=opset,
            all_logits=config.all_logits,
            quantized=prepared.quantized,
            weights_in=WEIGHTS_IN if config.narrow else None,
        )
        save(traced(), staged_model)
        in_place_needs = _write_in_place(functools.partial(traced, in_place_cache=True), staged_model, report)
        report("verifying against PyTorch")
        verify_rows = verification_rows(texts, tokenizer, hf_config.vocab_size)
        in_place = None if in_place_needs is None else staged_model.with_name(in_place_name(staged_model))
        checks = verify(staged_model, model, prepared.calibrated, verify_rows, in_place)
        for line in check_lines(checks):
            report(f"  {line}")
        require_passed(checks)

        _write_companions(folder, model, tokenizer)
        write_manifest(
            folder,
            model,
            model_info=model_section(model, parameters, config.dtype, opset),
            policy=policy_section(config.calibration, config.seed),
            calibration=prepared.section,
            checks=checks,
            quantization=quantization_section(config.quantization, prepared.quantized),
            in_place_onnxruntime=in_place_needs,
            pools=prepared.pools,
            inputs=prepared.inputs,
        )
    report(f"wrote {output} and its companions")
    return prepared.section


def _prepared(
    model: Any,
    rows: CalibrationRows,
    config: ExportConfig,
    data: tuple[str, str],
    output: Path,
    report: Callable[[str], None],
) -> Prepared:
    calibration, kept, rounded = config.calibration, kept_path(output), rounded_path(output)
    if not calibration.skips_inputs:
        return calibrate_neurons(model, rows.decoded, calibration, config.quantization, data, kept, report)
    share, rules = calibration.goal.value, calibration.rules
    return calibrate_inputs(model, rows, share, rules, config.quantization, config.narrow, data, kept, rounded, report)
