"""Biases by distance as they are traced, against Hugging Face's own code for them."""

import pytest
import torch
from transformers import DynamicCache

from clada.exporter.model.alibi import alibi_by_length
from tests.support.checkpoints import VOCABULARY
from tests.support.every_type import CONTEXT, tiny_model


# Tokens, and those before them: a prompt, one read in parts, steps of decode and the last of the context.
@pytest.mark.parametrize(("tokens", "past"), [(7, 0), (5, 20), (1, 1), (1, 30), (CONTEXT, 0), (1, CONTEXT - 1)])
@pytest.mark.parametrize("heads", [4, 6])  # slopes of a number that is no power of two are of the next one
@torch.no_grad()
def test_biases_are_those_of_the_model(tokens, past, heads):
    model = tiny_model("mpt", n_heads=heads, d_model=16 * heads)
    generator = torch.Generator().manual_seed(tokens + past)
    ids = torch.randint(1, VOCABULARY, (2, past + tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, : past // 2] = 0

    def logits() -> torch.Tensor:
        cache = DynamicCache()
        for some in (ids[:, :past], ids[:, past:]):
            if some.shape[1]:
                seen = mask[:, : cache.get_seq_length() + some.shape[1]]
                result = model(input_ids=some, attention_mask=seen, past_key_values=cache, use_cache=True).logits
        return result

    expected = logits()
    with alibi_by_length(model):
        torch.testing.assert_close(logits(), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(), expected, rtol=0, atol=0)
