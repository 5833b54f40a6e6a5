"""Dense reference of an evaluation: the Hugging Face checkpoint itself, in PyTorch and float32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clada.evaluation.scores import log_likelihoods
from clada.evaluation.subject import Floats


@torch.no_grad()
def dense_logits(model: Any, row: Sequence[int]) -> Floats:
    """Logits f32[N, V] after each token of a row, in one pass."""
    return model(input_ids=torch.tensor([list(row)])).logits[0].float().numpy()


@torch.no_grad()
def dense_log_likelihoods(model: Any, context: Sequence[int], endings: Sequence[Sequence[int]]) -> list[float]:
    """Summed log-likelihood of each ending of a context, in nats."""
    before = model(input_ids=torch.tensor([list(context)]), use_cache=True, logits_to_keep=1)
    before.past_key_values.batch_repeat_interleave(len(endings))
    longest = max(map(len, endings))
    # Padding on the right is behind all that is read: attention is causal.
    ids = torch.tensor([[*ending, *[0] * (longest - len(ending))] for ending in endings])
    after = model(input_ids=ids, past_key_values=before.past_key_values, use_cache=True)
    logits = torch.cat([before.logits.expand(len(endings), -1, -1), after.logits], dim=1).float().numpy()
    return [float(log_likelihoods(of[: len(e)], e).sum()) for of, e in zip(logits, endings, strict=True)]


@torch.no_grad()
def dense_continuation(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Likeliest tokens after a prompt, one after the other; one that ends a text is like any other."""
    tokens: list[int] = []
    ids, past = torch.tensor([list(prompt)]), None
    while len(tokens) < count:
        output = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        tokens.append(int(np.argmax(output.logits[0, -1].float().numpy())))
        ids = torch.tensor([tokens[-1:]])
    return tokens
