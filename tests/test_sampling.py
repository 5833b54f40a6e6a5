"""The sampler against transformers' own logits processors."""

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clada.plugins.errors import CladaError
from clada.runtime.sampling import SamplingConfig, probabilities, sample

SEEN = np.array([3, 5, 5, 40])


def logits_of(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(200) * 3).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=1.0),
        SamplingConfig(temperature=0.7),
        SamplingConfig(temperature=1.3, top_k=5),
        SamplingConfig(temperature=1.0, top_p=0.8),
        SamplingConfig(temperature=0.9, top_k=20, top_p=0.6, repetition_penalty=1.4),
        SamplingConfig(temperature=1.0, top_p=1e-6),
        SamplingConfig(temperature=1.0, top_k=1000),
    ],
)
def test_distribution_is_that_of_transformers(config, seed):
    logits = torch.from_numpy(logits_of(seed))[None]
    steps = [RepetitionPenaltyLogitsProcessor(config.repetition_penalty), TemperatureLogitsWarper(config.temperature)]
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    for step in steps:
        logits = step(torch.from_numpy(SEEN)[None], logits)
    expected = logits.softmax(-1)[0].numpy()
    np.testing.assert_allclose(probabilities(logits_of(seed), SEEN, config), expected, atol=1e-6)


def test_greedy_takes_the_likeliest():
    logits = logits_of(0)
    assert sample(logits, SEEN, SamplingConfig(), np.random.default_rng(0)) == logits.argmax()


def test_greedy_minds_the_repetition_penalty():
    logits = np.array([1.0, 2.0, 1.9])
    config = SamplingConfig(repetition_penalty=1.2)
    assert sample(logits, np.array([1]), config, np.random.default_rng(0)) == 2


def test_draws_follow_the_distribution():
    config, rng = SamplingConfig(temperature=1.0), np.random.default_rng(0)
    logits = np.log([0.1, 0.2, 0.7])
    counts = np.bincount([sample(logits, SEEN[:0], config, rng) for _ in range(4000)], minlength=3)
    np.testing.assert_allclose(counts / 4000, [0.1, 0.2, 0.7], atol=0.03)


def test_nan_logits_are_refused():
    with pytest.raises(CladaError, match="logits are NaN"):
        probabilities(np.array([0.0, np.nan]), SEEN[:0], SamplingConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(CladaError, match=message):
        SamplingConfig(**settings)
