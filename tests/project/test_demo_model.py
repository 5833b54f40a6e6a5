"""The committed demo model is a trained one, small, and documented."""

import ast

import torch

from clada.exporter.calibration.text import read_texts, sample_file, token_rows
from clada.exporter.model.checkpoint import load_model
from clada.runtime import GenerationConfig
from tests.conftest import DEMO_MODEL


def test_weights_are_small_safetensors():
    weights = list(DEMO_MODEL.glob("*.safetensors"))
    assert len(weights) == 1
    assert weights[0].stat().st_size <= 12_000_000
    assert not list(DEMO_MODEL.glob("*.bin"))


def test_model_card_states_data_tokens_and_loss():
    card = (DEMO_MODEL / "README.md").read_text()
    for word in ("data", "training tokens", "held-out", "nats a token", "seed"):
        assert word in card


@torch.no_grad()
def test_it_predicts_text_it_was_not_trained_on():
    """The calibration split is not in the training data: far below the 8.3 nats of a guess."""
    model, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    rows = token_rows(read_texts(sample_file()), tokenizer, vocabulary=4096, tokens=8192, length=512)
    losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    assert sum(losses) / len(losses) < 2.6


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_it_writes_python(demo_session):
    """Greedy continuations of simple headers parse, up to a line near the one that the length cuts off."""
    headers = ["def main():", "class Error(Exception):", "import os\n\ndef exists(path):", "def __repr__(self):"]
    good = 0
    for header in headers:
        text = header + demo_session.generate(header, GenerationConfig(max_new_tokens=48))[0].text
        lines = text.splitlines()
        good += any(parses("\n".join(lines[:end])) for end in range(len(header.splitlines()) + 1, len(lines)))
    assert good >= 3
