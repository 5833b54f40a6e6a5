"""Demo model as the exporter patches it, and rows of text that it was not trained on."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clada.exporter.calibration.text import read_texts, sample_file, token_rows
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from tests.conftest import DEMO_MODEL

# Characters of each text: many texts in few tokens.
_BEGINNING = 1500


def rows_for(
    tokenizer: PreTrainedTokenizerBase, tokens: int, length: int, seed: int = 0, texts: slice = slice(None)
) -> torch.Tensor:
    """Rows i64[N, length] of the beginnings of some of the sample texts."""
    chosen = [text[:_BEGINNING] for text in read_texts(sample_file())[texts]]
    return token_rows(chosen, tokenizer, vocabulary=len(tokenizer), tokens=tokens, length=length, seed=seed)


def patched_demo(rows: int = 12) -> tuple[PreTrainedModel, torch.Tensor, torch.Tensor]:
    """The demo model, and rows of 128 tokens: of every second text, and as many of the others."""
    model, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    halves = (rows_for(tokenizer, rows * 128, 128, texts=slice(start, None, 2)) for start in (0, 1))
    sparsify(model)
    return model, *halves
