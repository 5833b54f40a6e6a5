"""Decode of a whole text in one pass agrees with decode token by token."""

from dataclasses import fields, replace

import pytest
import torch

from clada.exporter.calibration import decode_pass
from clada.exporter.calibration.decode_pass import Decoded, Texts
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.patch import sparsify
from clada.exporter.model.steering import SiteSettings, steered
from tests.support.checkpoints import random_model, tiny_tokenizer
from tests.support.demo_model import patched_demo, rows_for
from tests.support.thresholds import uniform
from tests.support.token_by_token import read_rows

PROMPT = 12
NEVER = torch.tensor(2.0)


def load_map(surprisal: tuple[float, float], entropy: tuple[float, float], reanalysis_load: float) -> LoadMap:
    """Constants that move the scale by a factor of 4 between the ends of surprisal and entropy."""
    return LoadMap(
        surprisal_knots=torch.linspace(*surprisal, 9),
        entropy_knots=torch.linspace(*entropy, 9),
        scale_knots=torch.tensor([2.0, 1.0, 0.5]),
        reanalysis_load=torch.tensor(reanalysis_load),
        surprisal_weight=0.5,
    )


def demo():
    """The demo model, rows, thresholds that keep most, and a load that opens the pool now and then."""
    model, rows, _ = patched_demo()
    return model, rows[:3, :36], Calibrated(uniform(model, 0.2), load_map=load_map((0, 12), (0, 8), 0.3))


def opt():
    """The same of a tiny OPT, which flattens its rows and has no gate."""
    model = random_model("opt")
    sparsify(model)
    calibrated = Calibrated(uniform(model, 0.3), load_map=load_map((4, 8), (5.9, 6.1), 0.5))
    return model, rows_for(tiny_tokenizer(), 3 * 36, 36), calibrated


def pools_for(texts: Texts, share: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(len(texts.rows), layer.neurons, generator=generator) < share for layer in texts.layers]


def anticipation(width: int) -> Anticipation:
    """A probe of the second layer that moves the scale up and down."""
    weight = torch.randn(width, generator=torch.Generator().manual_seed(6)) / width**0.5
    knots, factors = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.6, 1.1, 0.4])
    return Anticipation(1, weight, torch.tensor(0.5), torch.tensor(-0.2), knots, factors)


def assert_same(decoded: Decoded, expected) -> None:
    """All fields agree; where neurons are counted, up to the few that rounding moves across a threshold."""
    for field in fields(Decoded):
        given, wanted = getattr(decoded, field.name), getattr(expected, field.name)
        if field.name in ("active", "read"):
            assert given.shape == wanted.shape
            assert (given - wanted).abs().max() < 0.02
            assert (given - wanted).abs().mean() < 1e-4
        else:
            torch.testing.assert_close(given, wanted, rtol=2e-3, atol=2e-4, check_dtype=False)


@pytest.mark.parametrize("made", [demo, opt])
@pytest.mark.parametrize("by", ["thresholds", "pools", "everything", "token table"])
def test_one_pass_is_token_by_token(made, by):
    model, rows, calibrated = made()
    texts, pools = Texts(model, rows, PROMPT), None
    if by != "thresholds":
        pools = pools_for(texts, 0.6)
    if by == "pools":
        calibrated = replace(calibrated, load_map=replace(calibrated.load_map, reanalysis_load=NEVER))
    if by == "everything":
        width = model.config.hidden_size
        generator = torch.Generator().manual_seed(7)
        added = tuple(0.02 * torch.randn(width, generator=generator) for _ in texts.layers)
        calibrated = replace(calibrated, compensation=added, anticipations=(anticipation(width),))
    if by == "token table":
        table = 0.2 + 2 * torch.rand(model.config.vocab_size, generator=torch.Generator().manual_seed(8))
        calibrated = replace(calibrated, load_map=replace(calibrated.load_map, token_scale=table))
    expected = read_rows(model, calibrated, rows, PROMPT, pools=pools)
    decoded = texts.decode(calibrated, expected.scale, pools, expected.opened, expected.load)
    assert_same(decoded, expected)
    # There was something to agree about.
    assert 0.2 < decoded.active.mean() < 0.8
    assert decoded.divergence.mean() > 1e-3
    assert expected.scale.std() > 0.1
    if by != "pools":
        assert 0.1 < expected.opened.float().mean() < 0.9


@pytest.mark.parametrize("made", [demo, opt])
def test_rows_do_not_depend_on_their_batch(made, monkeypatch):
    model, rows, calibrated = made()
    whole = Texts(model, rows, PROMPT)
    monkeypatch.setattr(decode_pass, "_LOGITS_IN_FLIGHT", 2 * model.config.vocab_size * rows.shape[1])
    parts = Texts(model, rows, PROMPT)
    assert [len(batch) for batch in whole.batches] == [3]
    assert [len(batch) for batch in parts.batches] == [2, 1]
    generator = torch.Generator().manual_seed(1)
    scale = 2 * torch.rand(3, rows.shape[1] - PROMPT, generator=generator)
    opened, pools = scale < 0.5, pools_for(whole, 0.5)
    settings = SiteSettings(calibrated.thresholds, anticipations=(anticipation(model.config.hidden_size),))
    steering = settings, scale, pools, opened, scale
    assert_same(parts.decode(*steering), whole.decode(*steering))
    for given, wanted in zip(parts.prompt_scores, whole.prompt_scores, strict=True):
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("made", [demo, opt])
def test_prompt_scores_are_of_each_row_and_its_prompt(made):
    """score_i = sum over the prompt of h_i^2 / |h|^2, by layer and row."""
    model, rows, _ = made()
    texts = Texts(model, rows, PROMPT)
    inputs: dict[int, torch.Tensor] = {}
    with torch.no_grad(), steered(model), shown_inputs(texts.layers, inputs.__setitem__):
        model(rows)
    for index, layer in enumerate(texts.layers):
        a, up = layer.activations(inputs[index].reshape(*rows.shape, -1)[:, :PROMPT])
        energy = (a * up).double().square()
        expected = (energy / energy.sum(-1, keepdim=True)).sum(1)
        torch.testing.assert_close(texts.prompt_scores[index].double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("made", [demo, opt])
def test_inputs_are_shown_at_decoded_tokens(made):
    """Those of a dense pass by `dense_inputs`, those that thresholds change by `decode`: each layer's own."""
    model, rows, calibrated = made()
    texts = Texts(model, rows, PROMPT)
    dense: list[dict[int, torch.Tensor]] = [{}, {}]
    with torch.no_grad(), steered(model), shown_inputs(texts.layers, dense[0].__setitem__):
        model(rows)
    texts.dense_inputs(dense[1].__setitem__)
    decoded: dict[int, torch.Tensor] = {}
    texts.decode(calibrated, take=lambda index, x: decoded.__setitem__(index, x.clone()))
    for index in range(len(texts.layers)):
        expected = dense[0][index].reshape(*rows.shape, -1)[:, PROMPT:]
        torch.testing.assert_close(dense[1][index], expected)
        assert decoded[index].shape == expected.shape
    # Nothing below the first layer's network is sparse at a text's first decoded token; above it all is.
    torch.testing.assert_close(decoded[0][:, 0], dense[1][0][:, 0])
    assert (decoded[1] - dense[1][1]).abs().max() > 1e-3


def test_first_rows_are_the_same_texts():
    model, rows, calibrated = demo()
    texts = Texts(model, rows, PROMPT)
    assert texts.decoded_tokens == 3 * (36 - PROMPT)
    assert texts.first(10**6) is texts
    few = texts.first(2 * 36)
    assert torch.equal(few.rows, rows[:2])
    assert torch.equal(texts.first(1).rows, rows[:1])
    decoded, all_decoded = few.decode(calibrated), texts.decode(calibrated)
    torch.testing.assert_close(decoded.divergence, all_decoded.divergence[:2], rtol=2e-3, atol=2e-4)
