"""Matrices held in the type of the checkpoint: results are those of a model in float32 throughout, to the bit."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clada.exporter import export as exporting
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.price import sensitivities
from clada.exporter.export import ExportConfig, export
from clada.exporter.model.checkpoint import load_model, parameter_count
from clada.exporter.model.hashes import model_hash
from clada.exporter.model.held_weights import HeldEmbedding, HeldLinear, HeldTensor, named_weights
from clada.exporter.model.products import find_products
from clada.exporter.quantization.product_quantization import quantize_products
from clada.exporter.quantization.quantize import Packed, QuantizationConfig, round_to_nearest
from tests.support.checkpoints import VOCABULARY, random_model, tiny_tokenizer
from tests.support.every_type import EXPORTED, tiny_model
from tests.support.exhaustive import few

NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# An embedding that is scaled, weights that lie the other way, biases, learned positions, norms without weights.
USUAL = ("bloom", "gemma3_text", "gpt2", "modernbert-decoder", "olmo", "opt")
BLOCKS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96}


def saved(model: Any, folder: Path, dtype: str) -> str:
    model.to(NARROW[dtype]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def both(source: str) -> tuple[Any, Any]:
    """A checkpoint's model with its matrices held, and in float32 throughout."""
    return load_model(source, torch.float32, held=True)[0], load_model(source, torch.float32)[0]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind", few(EXPORTED, USUAL))
def test_a_held_model_is_the_wide_one(kind, dtype, tmp_path):
    held, wide = both(saved(tiny_model(kind), tmp_path, dtype))
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(held(input_ids=ids).logits, wide(input_ids=ids).logits)
    ours, theirs = named_weights(held), named_weights(wide)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name](), theirs[name]()) for name in ours)
    for (name, buffer), (_, same) in zip(held.named_buffers(), wide.named_buffers(), strict=True):
        assert torch.equal(buffer, same), name
    assert model_hash(held) == model_hash(wide)
    assert parameter_count(held.config) == wide.num_parameters()
    assert held.config.to_dict() == wide.config.to_dict()
    assert held.dtype == torch.float32
    linears = [name for name, module in wide.named_modules() if type(module) is nn.Linear]
    assert linears
    for name in linears:
        linear = held.get_submodule(name)
        assert isinstance(linear, HeldLinear)
        assert isinstance(linear.held, HeldTensor)
        assert linear.held.tensor.dtype == NARROW[dtype]


def test_a_tied_matrix_is_in_memory_once(tmp_path):
    held, _ = both(saved(random_model("qwen3"), tmp_path, "bfloat16"))
    embedding, head = held.get_input_embeddings(), held.get_output_embeddings()
    assert isinstance(embedding, HeldEmbedding)
    assert head.held.tensor.data_ptr() == embedding.held.tensor.data_ptr()


def test_a_checkpoint_of_several_types_is_widened(tmp_path):
    """Its float32 tensors would lose digits in the type of the others."""
    source = saved(random_model("llama"), tmp_path, "bfloat16")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.randn(88, 48)
    save_file(tensors, path, metadata={"format": "pt"})
    held, wide = both(source)
    assert not any(isinstance(module, HeldLinear) for module in held.modules())
    assert torch.equal(held.model.layers[0].mlp.up_proj.weight, tensors["model.layers.0.mlp.up_proj.weight"])
    assert model_hash(held) == model_hash(wide)


def test_gradients_are_those_of_the_wide_model(tmp_path):
    held, wide = both(saved(random_model("llama"), tmp_path, "bfloat16"))
    rows = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    ours, theirs = (sensitivities(model, find_products(model), rows, 4) for model in (held, wide))
    for mine, their in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, their, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_layers_compute_with_what_is_packed(bits, tmp_path):
    """Against layers of the same values in float32; queries, keys and values are columns of one matrix."""
    held, wide = both(saved(random_model("llama", **{**BLOCKS, "num_key_value_heads": 1}), tmp_path, "bfloat16"))
    quantized = quantize_products(held, find_products(held), QuantizationConfig(bits), None, lambda _: None)
    for product in find_products(wide):
        values = quantized.products[product.name].values()
        assert not torch.equal(values, torch.cat([linear.weight.t() for linear in product.linears], 1))
        widths = [linear.out_features for linear in product.linears]
        for linear, part in zip(product.linears, values.split(widths, 1), strict=True):
            linear.weight.data.copy_(part.t())
    embedding = wide.get_input_embeddings().weight.data
    embedding.copy_(embedding.half())
    ids = torch.randint(0, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(held(input_ids=ids).logits, wide(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_columns_of_packed_rows(bits, block_size):
    packed = Packed(*round_to_nearest(torch.randn(70, 3 * 128), bits, block_size), bits)
    values = packed.values()
    for start, end in [(0, 384), (0, 1), (5, 6), (31, 33), (32, 96), (127, 300), (383, 384)]:
        assert torch.equal(packed.columns(start, end), values[:, start:end])


def digests(folder: Path) -> dict[str, str]:
    """Of an artifact's files, but its manifest, which tells when and how it was verified."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "clada.json"
    }


@pytest.mark.parametrize("quantize", [None, "int4"])
def test_an_export_is_the_wide_models(quantize, tmp_path, monkeypatch):
    """Byte for byte: what is held changes nothing of an artifact."""
    source = saved(random_model("llama", **BLOCKS, num_hidden_layers=1), tmp_path / "checkpoint", "bfloat16")
    config = ExportConfig(CalibrationConfig(bytes=0.6), calibration_tokens=600, quantize=quantize)
    export(tmp_path / "held" / "model.onnx", source, config)
    monkeypatch.setattr(exporting, "load_model", load_wide)
    export(tmp_path / "wide" / "model.onnx", source, config)
    assert digests(tmp_path / "held") == digests(tmp_path / "wide")


def load_wide(*args: Any, held: bool = False, **options: Any) -> Any:
    return load_model(*args, **options)
