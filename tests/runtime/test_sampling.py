"""The sampler against transformers' own logits processors."""

import time

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clada.errors import CladaError
from clada.runtime.sampling import SamplingConfig, _draw, probabilities, sample

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
        SamplingConfig(temperature=1.2, min_p=0.1),
        SamplingConfig(temperature=1.1, top_k=50, top_p=0.9, min_p=0.05),
    ],
)
def test_distribution_is_that_of_transformers(config, seed):
    logits = torch.from_numpy(logits_of(seed))[None]
    steps = [RepetitionPenaltyLogitsProcessor(config.repetition_penalty), TemperatureLogitsWarper(config.temperature)]
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        steps.append(MinPLogitsWarper(config.min_p))
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


def reference(logits: np.ndarray, seen: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """The definition, by sorting all in float64."""
    z = logits.astype(np.float64)
    for token in set(seen.tolist()) if config.repetition_penalty != 1 else ():
        z[token] = z[token] / config.repetition_penalty if z[token] > 0 else z[token] * config.repetition_penalty
    order = sorted(range(len(z)), key=lambda token: (-z[token], token))
    if config.top_k:
        order = order[: config.top_k]
    p = np.exp((z[order] - z[order[0]]) / config.temperature)
    p /= p.sum()
    kept = ((np.cumsum(p) - p < config.top_p) | (config.top_p == 1)) & (p >= config.min_p * p[0])
    result = np.zeros(len(z))
    result[np.array(order)[kept]] = p[kept] / p[kept].sum()
    return result


LOGITS = {
    "spread": lambda random, n: random.standard_normal(n) * 3,
    "flat": lambda random, n: random.standard_normal(n) * 0.01,
    "one stands out": lambda random, n: np.where(np.arange(n) == n // 3, 40.0, random.standard_normal(n)),
    "many masked": lambda random, n: np.where(random.random(n) < 0.9, -np.inf, random.standard_normal(n)),
    "few values": lambda random, n: random.integers(0, 12, n).astype(np.float64),
    "far apart": lambda random, n: random.standard_normal(n) * 1e4,
}


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("size", [1, 7, 5000, 40000])
def test_distribution_is_that_of_the_definition(kind, size):
    """Whatever the logits, whether few or many are kept; of equal ones the first."""
    random = np.random.default_rng(size)
    logits = LOGITS[kind](random, size).astype(np.float32)
    logits[0] = max(logits[0], 0)
    seen = random.integers(0, size, 50)
    for config in (
        SamplingConfig(0.7, top_p=0.9),
        SamplingConfig(0.7, top_p=0.9, repetition_penalty=1.1),
        SamplingConfig(1e-3, top_p=0.5, top_k=3000),
        SamplingConfig(50.0, top_k=40, top_p=0.95, repetition_penalty=0.8),
        SamplingConfig(1.0, min_p=0.02),
        SamplingConfig(1.3, top_k=2000, top_p=0.999),
        SamplingConfig(1.0),
    ):
        ours, expected = probabilities(logits, seen, config), reference(logits, seen, config)
        assert ours.sum() == pytest.approx(1)
        counts = [np.count_nonzero(p) for p in (ours, expected)]
        # Where the sum is p to within float32, a token more or less may be kept.
        border = 0 if counts[0] == counts[1] else 2.5 * min(p[p > 0].min() for p in (ours, expected))
        assert abs(counts[0] - counts[1]) <= max(1, 1e-4 * size)
        assert np.abs(ours - expected).sum() < 1e-4 + border


@pytest.mark.fault("results", "top-k of logits that are equal", now="exactly k are kept, those of the lowest ids")
@pytest.mark.parametrize("size", [10, 3000, 30000])
def test_equal_logits_do_not_widen_top_k(size):
    kept = probabilities(np.zeros(size, np.float32), SEEN, SamplingConfig(1.0, top_k=3))
    np.testing.assert_array_equal(np.flatnonzero(kept), [0, 1, 2])
    logits = np.zeros(size, np.float32)
    logits[[7, 9]] = 1
    kept = probabilities(logits, SEEN, SamplingConfig(1.0, top_k=4))
    np.testing.assert_array_equal(np.flatnonzero(kept), [0, 1, 7, 9])
    half = probabilities(np.zeros(size, np.float32), SEEN, SamplingConfig(1.0, top_p=0.5))
    np.testing.assert_allclose(np.flatnonzero(half), np.arange(size // 2))


def test_draws_reach_every_token_and_no_other():
    """A uniform number at every place, its ends included, against the cumulated probabilities."""
    weights = np.random.default_rng(0).random(3000).astype(np.float32)
    weights[[0, 1500, 2998, 2999]] = 0
    cumulated = weights.astype(np.float64).cumsum() / weights.astype(np.float64).sum()
    for place in np.flatnonzero(weights):
        middle = (cumulated[place] + (cumulated[place - 1] if place else 0)) / 2
        assert _draw(weights, middle) == place
    assert _draw(weights, 0.0) == 1
    assert _draw(weights, np.nextafter(1.0, 0)) == 2997


def test_same_seed_draws_the_same():
    """As NumPy's own choice among all tokens would."""
    config, logits = SamplingConfig(0.9, top_k=50, top_p=0.9), logits_of(4)
    p = probabilities(logits, SEEN, config)
    expected = [int(rng.choice(len(p), p=p)) for rng in [np.random.default_rng(3)] for _ in range(200)]
    rng = np.random.default_rng(3)
    assert [sample(logits, SEEN, config, rng) for _ in range(200)] == expected


@pytest.mark.fault("results", "logits that are not finite", now="one error; minus infinity is never chosen")
@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(0.7, top_k=3, top_p=0.9, repetition_penalty=1.2)])
def test_logits_that_are_not_finite(config):
    for bad in ([0.0, np.nan], [0.0, np.inf], [np.inf, np.nan], [-np.inf, -np.inf]):
        with pytest.raises(CladaError, match=r"the largest of the model's logits is (nan|-?inf)"):
            sample(np.array(bad, np.float32), SEEN[:0], config, np.random.default_rng(0))
    masked = np.full(500, -np.inf, np.float32)
    masked[[7, 9]] = 1.0
    drawn = {sample(masked, np.array([7]), config, np.random.default_rng(seed)) for seed in range(50)}
    assert drawn <= {7, 9}


def test_sampling_takes_less_than_sorting():
    """Of the vocabulary of a large model, by this thread's own time; the machine may be busy."""
    logits = (np.random.default_rng(0).standard_normal(151_936) * 3).astype(np.float32)
    config, random = SamplingConfig(0.7, top_p=0.9, repetition_penalty=1.1), np.random.default_rng(0)

    def seconds(work) -> float:
        times = []
        for _ in range(9):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
        return min(times)

    ours = seconds(lambda: sample(logits, SEEN, config, random))
    assert ours < seconds(lambda: np.argsort(-logits)) / 2


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
        ({"temperature": 1e-310}, "temperature is 1e-310; it must be 0 .greedy., or lie from 1e-06 to 1e"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"temperature": 1e300}, "temperature is 1e[+]300"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty is 1e-320; it must lie from"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_p": None}, "top_p is None; it must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be an integer"),
        ({"top_k": True}, "top_k is True; it must be an integer"),
        ({"seed": 10**5000}, "seed is an integer of 16610 bits; it must be 0 or more, and below 2"),
        ({"seed": 2.0}, "seed is 2.0; it must be an integer"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"min_p": float("nan")}, "min_p is nan"),
    ],
)
@pytest.mark.fault("command line", "sampling settings that float32 cannot apply", now="refused in one line")
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(CladaError, match=message):
        SamplingConfig(**settings)
