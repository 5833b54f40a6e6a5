"""One model with random weights as a checkpoint, as onnxruntime-genai's int4 model, and as our artifact."""

import os
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clada.benchmark.model_graph import load_that_moves_nothing, random_model
from clada.benchmark.shapes import Shape, random_tokens
from clada.contract.artifact import CONFIG_NAME, GENERATION_CONFIG_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from clada.contract.manifest import CalibrationSection, LayerCalibration, Policy, PolicySection
from clada.errors import CladaError
from clada.exporter.defaults import DEFAULT_QUANTIZED_OPSET
from clada.exporter.graph.ort_attention import minimum_onnxruntime
from clada.exporter.graph.trace import save, save_in_place, trace
from clada.exporter.manifest_sections import model_section, quantization_section, write_manifest
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.exporter.model.steering import SiteSettings, Steering, steered
from clada.exporter.quantization.quantize import QuantizationConfig, quantize_model

# 4 bits in blocks of 32, what the builder makes where nothing else is asked for.
FORMAT, FORMAT_NAME = QuantizationConfig(), "int4"
PROMPT, DECODED = 64, 64
_GENAI = "onnxruntime_genai"


def require_genai() -> None:
    """Raise CladaError where onnxruntime-genai is not installed."""
    if find_spec(_GENAI) is None:
        raise CladaError("onnxruntime-genai is not installed: pip install 'clada[genai]'")


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Save a random model in bfloat16, with a tokenizer that knows one word: only ids are read."""
    transformers.logging.disable_progress_bar()
    random_model(shape, torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(WordLevel({"unknown": 0}, unk_token="unknown"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="unknown").save_pretrained(folder)


def build_genai(checkpoint: Path, folder: Path) -> None:
    """Build the int4 model for the CPU with onnxruntime-genai's builder.

    Raises:
        CladaError: It failed; the message is its last line.
    """
    places = ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder.with_name("cache"))]
    command = [sys.executable, "-m", f"{_GENAI}.models.builder", *places, "-p", "int4", "-e", "cpu"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    if result.returncode:
        reason = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise CladaError(f"onnxruntime-genai's model builder failed: {reason}")


def _quantile(values: Tensor, share: float) -> float:
    """Quantile of any number of values; torch.quantile takes no more than 16 million."""
    return float(values.flatten().kthvalue(max(1, round(share * values.numel())))[0])


@torch.inference_mode()
def _thresholds(model: torch.nn.Module, share: float, shape: Shape) -> tuple[Tensor, ...]:
    """Set thresholds that keep a share of each layer's neurons, given the ones dropped in the layers before."""
    layers = sparse_layers(model)
    thresholds = tuple(torch.zeros(shape.neurons) for _ in layers)

    def choose(index: int, x: Tensor) -> None:
        a, _ = layers[index].activations(x[:, PROMPT:])
        # One pass for all: each layer's are filled in just before it runs.
        thresholds[index].fill_(_quantile(a.abs(), 1 - share))

    ids = torch.from_numpy(random_tokens(shape, PROMPT + DECODED, seed=1))
    scale = torch.cat([torch.zeros(1, PROMPT), torch.ones(1, DECODED)], dim=1)
    with shown_inputs(layers, choose), steered(model, Steering(SiteSettings(thresholds), scale)):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return thresholds


def _nothing_calibrated(calibrated: Calibrated, share: float) -> CalibrationSection:
    load_map = calibrated.load_map
    return CalibrationSection(
        data="random tokens",
        data_sha256="",
        tokens=DECODED,
        prompt_tokens=PROMPT,
        divergence_nats=0.0,
        agreement=1.0,
        ffn_cost=share,
        layers=tuple(LayerCalibration(1 - share, 1.0, float(t.median())) for t in calibrated.thresholds),
        scale_knots=tuple(load_map.scale_knots.tolist()),
        reanalysis_load=load_map.reanalysis_load.item(),
        surprisal_weight=load_map.surprisal_weight,
        anticipation=None,
        gains={},
    )


def write_artifact(checkpoint: Path, shape: Shape, share: float, folder: Path) -> Path:
    """Export a checkpoint with quantized weights, as clada-export does, but with thresholds for a share of neurons.

    Nothing is calibrated: of random weights there is nothing to learn.

    Returns:
        Path of the ONNX file.
    """
    model, _ = load_model(str(checkpoint), torch.float32)
    parameters = model.num_parameters()
    sparsify(model)
    nothing_read = torch.empty(0, 0, dtype=torch.int64)
    quantized = quantize_model(model, nothing_read, FORMAT, report=lambda _line: None)
    calibrated = Calibrated(_thresholds(model, share, shape), load_map=load_that_moves_nothing())
    traced = partial(trace, model, calibrated, opset=DEFAULT_QUANTIZED_OPSET, quantized=quantized)
    folder.mkdir()
    path = folder / "model.onnx"
    save(traced(), path)
    in_place = traced(in_place_cache=True)
    save_in_place(in_place, path)
    for name in (TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME):
        shutil.copy(checkpoint / name, folder)
    write_manifest(
        folder,
        model,
        model_info=model_section(model, parameters, "float32", DEFAULT_QUANTIZED_OPSET),
        policy=PolicySection("benchmark", Policy(thresholds="activation"), seed=0, target_sparsity=1 - share),
        calibration=_nothing_calibrated(calibrated, share),
        checks=[],
        quantization=quantization_section(FORMAT, quantized),
        in_place_onnxruntime=minimum_onnxruntime(in_place),
        pools=None,
    )
    return path
