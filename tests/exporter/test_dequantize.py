"""Checkpoints that are quantized already: AWQ, GPTQ, FP8 and compressed-tensors, dequantized as they define it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clada.errors import CladaError
from clada.exporter.model.checkpoint import load_model
from tests.support.checkpoints import random_model, tiny_tokenizer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
GROUP = 32
WEIGHTS = "model.safetensors"


def packed(numbers: torch.Tensor, bits: int, order: range | tuple[int, ...]) -> torch.Tensor:
    """Words i32[R, C * bits / 32] of numbers i64[R, C]; bits from the lowest on are of the column that order gives."""
    per_word = 32 // bits
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // per_word, dtype=torch.int64)
    for place in range(per_word):
        words |= (numbers[:, order[place] :: per_word] & (2**bits - 1)) << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def rounded(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes i64[K, N], zeros i64[G, N], scales f16[G, N] of a weight [N, K], and the weight they stand for."""
    groups = weight.t().reshape(-1, GROUP, weight.shape[0])
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = (-low / scales).round().clamp(0, 2**bits - 1)
    zeros[0, 0, :3] = 0  # a format that stores one less has these at its other end
    codes = (groups / scales + zeros).round().clamp(0, 2**bits - 1)
    values = ((codes - zeros) * scales).reshape(weight.shape[1], -1).t()
    return codes.reshape(weight.shape[1], -1).long(), zeros[:, 0].long(), scales[:, 0].half(), values.contiguous()


def awq(weight, bits=4):
    codes, zeros, scales, values = rounded(weight, bits)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {"qweight": packed(codes, 4, order), "qzeros": packed(zeros, 4, order), "scales": scales}, values


def gptq(weight, bits, shuffled=False, first=1):
    codes, zeros, scales, values = rounded(weight, bits)
    part = {
        "qweight": packed(codes.t(), bits, range(32 // bits)).t().contiguous(),
        "qzeros": packed(zeros - first, bits, range(32 // bits)),
        "scales": scales,
        "g_idx": (torch.arange(codes.shape[0]) // GROUP).int(),
    }
    if shuffled:  # by activation order: rows of a group lie anywhere
        order = torch.randperm(codes.shape[0], generator=torch.Generator().manual_seed(0))
        part["g_idx"] = part["g_idx"][order].contiguous()
        part["qweight"] = packed(codes[order].t(), bits, range(32 // bits)).t().contiguous()
        values = values[:, order].contiguous()
    return part, values


def fp8(weight):
    blocks = (weight.shape[0] + 31) // 32, (weight.shape[1] + 31) // 32
    scales = torch.linspace(0.001, 0.002, blocks[0] * blocks[1]).reshape(blocks)
    each = scales.repeat_interleave(32, 0)[: weight.shape[0]].repeat_interleave(32, 1)[:, : weight.shape[1]]
    stored = (weight / each).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scales}, stored.float() * each


def of_channels(weight):
    """int8 with a scale for each output, as compressed-tensors' int-quantized has it."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


_INT8_CHANNELS = {
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
        }
    },
}
FORMATS = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "gptq, 4 bits": (lambda w: gptq(w, 4), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq, 8 bits": (lambda w: gptq(w, 8), {"quant_method": "gptq", "bits": 8, "group_size": GROUP}),
    "gptq, 2 bits": (lambda w: gptq(w, 2), {"quant_method": "gptq", "bits": 2, "group_size": GROUP}),
    "gptq, by activation": (lambda w: gptq(w, 4, shuffled=True), {"quant_method": "gptq", "bits": 4, "desc_act": True}),
    "gptq, second version": (
        lambda w: gptq(w, 4, first=0),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    ),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}),
    "compressed-tensors": (of_channels, {"quant_method": "compressed-tensors", **_INT8_CHANNELS}),
}


def write(folder: Path, name: str) -> torch.nn.Module:
    """A quantized checkpoint; returns the model of the values that its weights stand for."""
    quantize, settings = FORMATS[name]
    model = random_model("llama", **SIZES)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    stored = {}
    with torch.no_grad():
        for key, tensor in load_file(folder / WEIGHTS).items():
            if key.endswith("_proj.weight"):
                part, values = quantize(tensor)
                stored |= {f"{key.removesuffix('.weight')}.{kind}": value for kind, value in part.items()}
                model.get_parameter(key).copy_(values)
            else:
                stored[key] = tensor
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    edit_config(folder, quantization_config=settings)
    return model


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_checkpoint_is_dequantized(tmp_path, name):
    theirs = write(tmp_path, name)
    model, _ = load_model(str(tmp_path), torch.float32)
    for key, expected in theirs.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], expected, rtol=1e-6, atol=1e-7, msg=key)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-5)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.fault("files", "a quantized checkpoint whose settings or tensors make no sense", now="refused in one line")
@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("awq", {"version": "gemv"}, "AWQ's version gemv in 4 bits; only gemm in 4 is read"),
        ("awq", {"bits": 8}, "in 8 bits"),
        ("gptq, 4 bits", {"bits": 3}, "GPTQ in 3 bits; only 2, 4 and 8 are read"),
        ("gptq, 4 bits", {"bits": 8}, "do not fit one another"),
        ("gptq, 4 bits", {"quant_method": "awq"}, "do not fit one another"),
        ("gptq, 4 bits", {"quant_method": "fp8"}, "weights"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(tmp_path, name, changes, reason):
    write(tmp_path, name)
    edit_config(tmp_path, quantization_config=FORMATS[name][1] | changes)
    with pytest.raises(CladaError) as refused:
        load_model(str(tmp_path), torch.float32)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
