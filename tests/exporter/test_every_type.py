"""Every causal model type that transformers knows: exported and decoded as Hugging Face decodes, or refused by name."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from clada.errors import CladaError
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.export import ExportConfig, export
from clada.exporter.model.checkpoint import load_config, load_model
from clada.exporter.verify import TOLERANCES
from clada.runtime import Session
from tests.support.checkpoints import VOCABULARY, tiny_tokenizer
from tests.support.every_type import EXPORTED, LAYERS, TYPES, architecture, tiny_config, tiny_model
from tests.support.exhaustive import few
from tests.support.manifests import read_manifest

DECODED = 64
# Texts of a batch, the first of which is alone too.
PROMPTS = (30, 5, 17)


def config_of(kind: str) -> transformers.PretrainedConfig:
    """A tiny one, or where sizes depend on one another, the type's usual one."""
    try:
        return tiny_config(kind)
    except ValueError:
        return transformers.AutoConfig.for_model(kind)


def loaded(kind: str, folder: Path) -> Any:
    """The tiny model of a type, from a checkpoint, as the export loads it; its configuration is looked at first."""
    config = config_of(kind)
    config.architectures = [architecture(kind)]
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    load_config(str(folder))
    write_checkpoint(kind, folder)
    return load_model(str(folder), torch.float32)


def write_checkpoint(kind: str, folder: Path, **changes: Any) -> None:
    tiny_model(kind, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_exported_or_refused_in_one_line(kind, tmp_path, record_property):
    if kind in EXPORTED:
        loaded(kind, tmp_path)
        return
    with pytest.raises(CladaError) as refused:
        loaded(kind, tmp_path)
    reason = str(refused.value)
    assert "\n" not in reason
    record_property("model type", kind)
    record_property("refused", reason.replace(str(tmp_path), "it"))


def test_most_dense_types_are_exported():
    assert set(EXPORTED) <= set(TYPES)
    assert len(EXPORTED) >= 45


# With Conv1D and learned places.
USUAL = [("gpt2", "float16")]


# A random Gemma 4 is too rough in float16: of 28,416 decisions 30 are off by up to 1.3%, where 0.8% is allowed.
REFUSED_BY_VERIFICATION = [("gemma4_text", "float16")]
CASES = [case for case in itertools.product(EXPORTED, ("float32", "float16")) if case not in REFUSED_BY_VERIFICATION]


@pytest.mark.parametrize(("kind", "dtype"), few(CASES, USUAL))
def test_a_type_decodes_as_hugging_face_does(kind, dtype, tmp_path, record_property):
    """Sparse decode is compared with PyTorch by the export; here all bytes, with the whole text read at once."""
    checkpoint, path = tmp_path / "checkpoint", tmp_path / "out" / "model.onnx"
    record_property("model type", kind)
    record_property("dtype", dtype)
    write_checkpoint(kind, checkpoint)
    export(path, str(checkpoint), ExportConfig(CalibrationConfig(bytes=0.6), calibration_tokens=600, dtype=dtype))
    manifest = read_manifest(path.parent)
    record_property("path: in place", "yes" if manifest.get("in_place_cache") else "no")
    logits = {check["name"]: check["required"] for check in manifest["verification"] if ":" not in check["name"]}
    for side in ("bodies", "native"):
        worst = max(needed for name, needed in logits.items() if ("native" in name) == (side == "native"))
        record_property(f"path: sparse, {side}", f"{worst:.1e}")

    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, VOCABULARY, (length + DECODED,), generator=generator).tolist() for length in PROMPTS]
    with torch.no_grad():
        whole = [reference(input_ids=torch.tensor([text])).logits[0].float().numpy() for text in texts]
    expected = [logits[length - 1 :] for logits, length in zip(whole, PROMPTS, strict=True)]
    prompts = [text[:length] for text, length in zip(texts, PROMPTS, strict=True)]
    following = [text[length:] for text, length in zip(texts, PROMPTS, strict=True)]
    allowed = 2 * TOLERANCES[reference.dtype] * LAYERS**0.5
    apart = []
    for kernels in ("auto", "bodies"):
        session = Session(path, kernels=kernels, bytes=1)
        for batch in (1, 3):
            state = session.prefill(prompts[:batch])
            for step in range(DECODED):
                for ours, logits in zip(state.logits, expected[:batch], strict=True):
                    difference = np.abs(ours.astype(np.float32) - logits[step]).max()
                    apart.append(float(difference / np.ptp(logits[step])))
                session.decode(state, [tokens[step] for tokens in following[:batch]])
    record_property("path: all bytes", f"{max(apart):.1e}")
    assert max(apart) <= allowed


# Types that scale their embedding, and the field of the width that no block of 32 would divide.
SCALED = [(kind, "intermediate_size") for kind in ("biogpt", "gemma", "gemma2", "gemma3_text", "vaultgemma")]
SCALED.append(("xglm", "ffn_dim"))


@pytest.mark.parametrize(("kind", "width"), few(SCALED, [("gemma2", "intermediate_size")]))
def test_a_scaled_embedding_is_quantized(kind, width, tmp_path):
    """Its table is float16 in the graph, its scale the model's own; the export compares that with PyTorch."""
    write_checkpoint(kind, tmp_path / "checkpoint", num_hidden_layers=2, **{width: 96})
    path = tmp_path / "out" / "model.onnx"
    config = ExportConfig(CalibrationConfig(bytes=0.6), calibration_tokens=600, quantize="int4")
    export(path, str(tmp_path / "checkpoint"), config)
    table = next(
        t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name.endswith("embed_tokens.weight")
    )
    assert table.data_type == onnx.TensorProto.FLOAT16
