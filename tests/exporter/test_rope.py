"""Rotary angles of an export, at every length of a text, against those of transformers itself."""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from clada.errors import CladaError
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.policies import POLICIES
from clada.exporter.calibration.text import read_texts, sample_file
from clada.exporter.export import ExportConfig, export
from clada.exporter.graph import trace as tracing
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from clada.exporter.model.rope import check_rope, context_length
from clada.exporter.verify import require_passed, verification_rows, verify
from clada.runtime import Session
from clada.runtime.models.ort_cpu import Execution, OnnxRuntimeModel
from tests.exporter.test_trace import LOAD_MAP
from tests.support.checkpoints import write_checkpoint
from tests.support.exhaustive import few
from tests.support.thresholds import uniform

ORIGINAL = 64
FACTOR = 4.0
_HALF = 4  # frequencies of a head 8 wide
_SETTINGS = {
    "default": {},
    "linear": {"factor": FACTOR},
    "dynamic": {"factor": FACTOR},
    "yarn": {"factor": FACTOR, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": FACTOR,
        "original_max_position_embeddings": ORIGINAL,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
    },
}
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def rope_changes(kind: str) -> dict:
    """Changes to a configuration for a rope type."""
    context = ORIGINAL if kind == "dynamic" else int(ORIGINAL * FACTOR)
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, **_SETTINGS[kind]}
    return {"rope_parameters": parameters, "max_position_embeddings": context, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function from a rope type to the folder of a tiny Llama with it, whose weights float16 holds exactly."""

    @functools.cache
    def folder(kind: str) -> Path:
        path = write_checkpoint(tmp_path_factory.mktemp(f"rope-{kind}"), "llama", **rope_changes(kind))
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16)
        model.save_pretrained(path)
        return path

    return folder


@torch.no_grad()
def by_transformers(folder: Path, dtype: torch.dtype, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """f64[1 + N, V]: logits after a prompt and after each token that follows, of a model that has read nothing else."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    output = model(input_ids=torch.tensor([prompt]), use_cache=True)
    rows = [output.logits[0, -1]]
    for token in tokens:
        output = model(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        rows.append(output.logits[0, -1])
    return torch.stack(rows).double().numpy()


def by_graph(model: OnnxRuntimeModel, prompts: list[list[int]], tokens: list[int]) -> np.ndarray:
    """f64[B, 1 + N, V]: the same of an exported graph, for a batch of texts padded on the left."""
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(p)) + p for p in prompts])
    mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    cache, logits, rows = model.empty_cache(len(prompts)), np.zeros((len(prompts), model.vocabulary), model.dtype), []
    pools = {f"pool.{n}": np.ones((len(prompts), size), np.bool_) for n, size in enumerate(model.neurons)}
    for token in [None, *tokens]:
        if token is not None:
            ids = np.full((len(prompts), 1), token)
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        places = (mask.cumsum(1) - 1).clip(0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "past_logits": logits, **pools}
        outputs, cache = model.step(given, cache, ["logits"])
        logits = outputs["logits"][:, -1]
        rows.append(logits.astype(np.float64))
    return np.stack(rows, axis=1)


@pytest.fixture(scope="module")
def graphs(checkpoints, tmp_path_factory):
    """A function from a rope type and a dtype to the graph that is traced of it."""

    @functools.cache
    def traced(kind: str, dtype: str) -> OnnxRuntimeModel:
        model, _ = load_model(str(checkpoints(kind)), DTYPES[dtype])
        path = tmp_path_factory.mktemp("rope") / "model.onnx"
        # Thresholds of 0 keep every neuron: what is compared is the dense model.
        sparsify(model)
        tracing.save(tracing.trace(model, Calibrated(uniform(model), load_map=LOAD_MAP)), path)
        return OnnxRuntimeModel(path, Execution(threads=1, kernels="bodies"))

    return traced


@pytest.mark.fault("results", "a rope type, at every length of a text", now="as transformers computes it")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    few(
        [*((kind, "float16") for kind in _SETTINGS), ("dynamic", "float32"), ("longrope", "float32")],
        [("llama3", "float16"), ("dynamic", "float32"), ("longrope", "float32")],
    ),
)
def test_angles_are_those_of_transformers_to_the_end_of_the_context(checkpoints, graphs, kind, dtype, record_property):
    folder, model = checkpoints(kind), graphs(kind, dtype)
    rng = np.random.default_rng(3)
    lengths = (ORIGINAL // 2, ORIGINAL - 2, ORIGINAL + 1, int(ORIGINAL * FACTOR) - 5)
    record_property("cases", len(lengths))
    for length in lengths:
        prompt, tokens = rng.integers(1, 500, length).tolist(), rng.integers(1, 500, 4).tolist()
        exact = by_transformers(folder, torch.float32, prompt, tokens)
        floor = 1e-5 if dtype == "float32" else 2e-3
        allowed = floor * np.ptp(exact)
        if dtype == "float16":
            allowed += 2 * np.abs(by_transformers(folder, torch.float16, prompt, tokens) - exact).max()
        # Alone, and beside a shorter text, whose length must not matter.
        for batch in ([prompt], [prompt, prompt[: ORIGINAL // 4]]):
            given = by_graph(model, batch, tokens)[0]
            assert np.abs(given - exact).max() <= allowed, (length, len(batch))


def test_a_text_in_a_batch_keeps_the_angles_of_its_own_length(checkpoints, graphs):
    """Transformers takes those of the longest text; a text's own are those it has alone."""
    rng = np.random.default_rng(4)
    long, short = rng.integers(1, 500, 2 * ORIGINAL).tolist(), rng.integers(1, 500, ORIGINAL // 2).tolist()
    for kind in ("dynamic", "longrope"):
        exact = by_transformers(checkpoints(kind), torch.float32, short, [7])
        given = by_graph(graphs(kind, "float32"), [long, short], [7])[1]
        np.testing.assert_allclose(given, exact, atol=1e-5 * np.ptp(exact))


def test_context_of_dynamic_frequencies_is_the_stretched_one(checkpoints):
    for kind in _SETTINGS:
        model, _ = load_model(str(checkpoints(kind)), torch.float32)
        assert context_length(model.config) == ORIGINAL * FACTOR


def test_rope_types_that_cannot_be_traced_are_refused():
    layers = {"full_attention": {"rope_type": "dynamic", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}}
    for parameters, reason in (({"rope_type": "spiral"}, "'spiral' is not known"), (layers, "'dynamic' for some")):
        with pytest.raises(CladaError, match=reason):
            check_rope(SimpleNamespace(rope_parameters=parameters))


# Sharp attention, which an angle that is off moves elsewhere.
_SHARP = {"head_dim": 32, "initializer_range": 0.2, "max_position_embeddings": 4096, "num_hidden_layers": 2}


def test_verification_notices_frequencies_that_are_rounded(tmp_path):
    """At the end of the context, most of all: over the first tokens rounding an angle to float16 is next to nothing."""
    model, tokenizer = load_model(str(write_checkpoint(tmp_path / "hf", "llama", **_SHARP)), torch.float32)
    sparsify(model)
    calibrated, path = Calibrated(uniform(model), load_map=LOAD_MAP), tmp_path / "model.onnx"
    tracing.save(tracing.trace(model, calibrated), path)
    rows = verification_rows(read_texts(sample_file()), tokenizer, model.config.vocab_size)
    require_passed(verify(path, model, calibrated, rows))
    frequencies = model.model.rotary_emb.inv_freq
    frequencies.copy_(frequencies.half())
    checks = {check.name: check for check in verify(path, model, calibrated, rows)}
    at_the_end = checks["decode at place 4,095, batch 1"]
    assert not at_the_end.passed
    assert at_the_end.required > 10 * checks["decode, batch 1"].required


@pytest.mark.fault("results", "a float16 export, after 3,000 tokens", now="as near as transformers' own float16 is")
def test_float16_export_is_as_near_as_transformers_own(tmp_path):
    """The frequencies stay in float32: rounded, they would be off by half a radian at the end of the text."""
    folder = write_checkpoint(tmp_path / "hf", "llama", **_SHARP)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(folder)
    dense = CalibrationConfig(policy=POLICIES["dense"])
    export(
        tmp_path / "model.onnx",
        str(folder),
        ExportConfig(dense, calibration_tokens=512, dtype="float16"),
        report=lambda _: None,
    )
    prompt = np.random.default_rng(5).integers(1, 500, 3000).tolist()
    exact = by_transformers(folder, torch.float32, prompt, [])[0]
    half = by_transformers(folder, torch.float16, prompt, [])[0]
    given = Session(tmp_path / "model.onnx", threads=1).prefill([prompt]).logits[0].astype(np.float64)
    assert np.abs(given - exact).max() <= 2 * np.abs(half - exact).max() + 5e-4 * np.ptp(exact)
