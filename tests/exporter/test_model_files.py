"""Models as people have them: GGUF files, and LoRA adapters beside a checkpoint."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clada.errors import CladaError
from clada.exporter import cli
from clada.exporter.model.checkpoint import load_config, load_model
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime import cli as runtime_cli
from tests.support.checkpoints import random_model, tiny_tokenizer, write_checkpoint
from tests.support.every_type import tiny_model
from tests.support.gguf_files import write_gguf

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
# Widths that blocks of 32 divide.
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
ADAPTER = "adapter_model.safetensors"


def export_of(folder: Path, *options: object) -> Path:
    path = folder / "out" / "model.onnx"
    given = [path, "--calibration-tokens", 600, "--bytes", 0.6, *options]
    assert cli.main([str(option) for option in given]) == 0
    return path


def refused(source: Path, **reading: str) -> str:
    with pytest.raises(CladaError) as caught:
        load_config(str(source), **reading)
        load_model(str(source), torch.float32, **reading)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, random_model("qwen2", **SIZES, num_hidden_layers=1))
    return path


def test_a_gguf_has_the_weights_that_llama_cpp_reads(tmp_path):
    theirs = random_model("qwen2", **SIZES)
    theirs.load_state_dict(write_gguf(tmp_path / "tiny.gguf", theirs))
    model, tokenizer = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=0, atol=0)
    text = "def f(x):\n    return x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_gguf_is_exported_and_verified(gguf_file, tmp_path, capsys):
    path = export_of(tmp_path, "--model", gguf_file)
    assert "dequantized from GGUF" in capsys.readouterr().out
    assert runtime_cli.main(["verify", str(path), "--model", str(gguf_file)]) == 0
    model, _ = load_model(str(gguf_file), torch.float32)
    session = Session(path, bytes=1)
    prompt = IDS[0].tolist()
    ours = session.generate(prompt, GenerationConfig(max_new_tokens=16, sampling=SamplingConfig(temperature=0)))[0]
    theirs = model.generate(IDS, max_new_tokens=16, do_sample=False)[0, len(prompt) :].tolist()
    assert ours.tokens == theirs[: len(ours.tokens)]


@pytest.mark.fault("files", "a GGUF that is cut off or damaged", now="refused in one line")
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.999])
def test_a_gguf_that_is_cut_off_is_one_line(gguf_file, tmp_path, share):
    content = gguf_file.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refused(path)


@pytest.mark.fault("files", "a GGUF of a type that transformers does not read", now="refused in one line")
@pytest.mark.parametrize(
    ("old", "new", "reason"), [(b"qwen2", b"spira", "spira"), (b"GGUF", b"FUGG", "cannot read the configuration")]
)
def test_a_gguf_of_an_unknown_type_is_one_line(gguf_file, tmp_path, old, new, reason):
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf_file.read_bytes().replace(old, new))
    assert reason in refused(path)


def test_a_folder_of_ggufs_is_told_how_to_give_one(gguf_file):
    assert "it holds GGUF files: give the path of one" in refused(gguf_file.parent)


def write_adapter(model: torch.nn.Module, folder: Path, targets: list[str]) -> torch.nn.Module:
    """A LoRA of random weights; returns the model that peft computes with it, not merged."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """One of the tiny Llama's."""
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(random_model("llama"), folder, ["q_proj", "down_proj"])
    return folder


@pytest.mark.parametrize(("kind", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_an_adapter_is_merged_as_peft_computes_it(tmp_path, kind, targets):
    """GPT-2's layers have their weights the other way."""
    model = tiny_model(kind)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with torch.no_grad():
        before = model(IDS).logits
        theirs = write_adapter(model, tmp_path / "adapter", targets)(IDS).logits
        merged, _ = load_model(str(tmp_path / "model"), torch.float32, adapter=str(tmp_path / "adapter"))
        torch.testing.assert_close(merged(IDS).logits, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - before).abs().max() > 0.1


def test_an_adapter_is_exported_and_verified(tmp_path):
    base, adapter = write_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1), tmp_path / "adapter"
    write_adapter(random_model("llama", num_hidden_layers=1), adapter, ["q_proj", "down_proj"])
    path = export_of(tmp_path, "--model", base, "--adapter", adapter)
    assert runtime_cli.main(["verify", str(path), "--model", str(base), "--adapter", str(adapter)]) == 0
    assert runtime_cli.main(["verify", str(path), "--model", str(base)]) == 1
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = peft.PeftModel.from_pretrained(reference, adapter).eval()
    state = Session(path, bytes=1).prefill([IDS[0].tolist()])
    with torch.no_grad():
        expected = reference(IDS).logits[0, -1]
    torch.testing.assert_close(torch.from_numpy(state.logits[0]), expected, rtol=0, atol=1e-4 * float(expected.std()))


@pytest.mark.fault("files", "an adapter of another model", now="refused in one line")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 96}, "cannot be merged into this model"),
        ({"num_hidden_layers": 5}, "is not of this model"),
        ({"num_hidden_layers": 1}, "is not of this model"),
    ],
    ids=str,
)
def test_an_adapter_of_another_model_is_one_line(checkpoint, tmp_path, changes, reason):
    write_adapter(random_model("llama", **changes), tmp_path, ["q_proj"])
    assert reason in refused(checkpoint("llama"), adapter=str(tmp_path))


def test_an_adapter_of_another_family_is_one_line(checkpoint, tmp_path):
    write_adapter(random_model("gpt_neox"), tmp_path, ["query_key_value"])
    assert "cannot be merged into this model" in refused(checkpoint("llama"), adapter=str(tmp_path))


@pytest.mark.fault("files", "an adapter's folder that lacks a file or holds a damaged one", now="refused in one line")
def test_an_adapter_that_is_none_is_one_line(checkpoint, adapter, tmp_path):
    base = checkpoint("llama")
    assert "no adapter_config.json" in refused(base, adapter=str(tmp_path / "absent"))
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    weights = load_file(folder / ADAPTER)
    (folder / ADAPTER).write_bytes((folder / ADAPTER).read_bytes()[:-100])
    assert "cannot be merged" in refused(base, adapter=str(folder))
    save_file(dict(list(weights.items())[1:]), folder / ADAPTER)
    assert "is not of this model: 1 weights" in refused(base, adapter=str(folder))
    (folder / ADAPTER).rename(folder / "adapter_model.bin")
    assert f"holds no {ADAPTER}" in refused(base, adapter=str(folder))
    (folder / "adapter_config.json").write_text("{")
    assert "cannot read the configuration of the adapter" in refused(base, adapter=str(folder))


def test_the_folder_of_an_adapter_is_no_model(adapter):
    assert f"by --adapter {adapter}" in refused(adapter)
