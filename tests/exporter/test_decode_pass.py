"""Decode of a whole text in one pass agrees with decode token by token."""

from dataclasses import fields

import pytest
import torch

from clada.exporter.calibration import decode_pass
from clada.exporter.calibration.decode_pass import Decoded, Texts
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.hooks import shown_inputs
from clada.exporter.model.load_map import LoadMap
from clada.exporter.model.patch import sparse_layers, sparsify
from tests.support.checkpoints import random_model, tiny_tokenizer
from tests.support.demo_model import patched_demo, rows_for
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
    """The demo model, its state, rows, and a load that opens the pool now and then; most neurons are kept."""
    model, sparsity, rows, _ = patched_demo()
    sparsity.thresholds[:] = [torch.full((layer.neurons,), 0.2) for layer in sparse_layers(model)]
    return model, sparsity, rows[:3, :36], load_map((0, 12), (0, 8), 0.3)


def opt():
    """The same of a tiny OPT, which flattens its rows and has no gate."""
    model = random_model("opt")
    sparsity = sparsify(model)
    sparsity.thresholds[:] = [torch.full((layer.neurons,), 0.3) for layer in sparse_layers(model)]
    return model, sparsity, rows_for(tiny_tokenizer(), 3 * 36, 36), load_map((4, 8), (5.9, 6.1), 0.5)


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
@pytest.mark.parametrize("steered", ["thresholds", "pools", "everything", "token table"])
def test_one_pass_is_token_by_token(made, steered):
    model, sparsity, rows, constants = made()
    texts, pools = Texts(model, sparsity, rows, PROMPT), None
    if steered != "thresholds":
        pools = pools_for(texts, 0.6)
    if steered == "pools":
        constants.reanalysis_load = NEVER
    if steered == "everything":
        width = model.config.hidden_size
        sparsity.anticipations = [anticipation(width)]
        generator = torch.Generator().manual_seed(7)
        sparsity.compensation = [0.02 * torch.randn(width, generator=generator) for _ in texts.layers]
    if steered == "token table":
        table = 0.2 + 2 * torch.rand(model.config.vocab_size, generator=torch.Generator().manual_seed(8))
        constants.token_scale = table
    expected = read_rows(model, sparsity, constants, rows, PROMPT, pools=pools)
    decoded = texts.decode(expected.scale, pools, expected.opened, expected.load)
    assert_same(decoded, expected)
    # There was something to agree about.
    assert 0.2 < decoded.active.mean() < 0.8
    assert decoded.divergence.mean() > 1e-3
    assert expected.scale.std() > 0.1
    if steered != "pools":
        assert 0.1 < expected.opened.float().mean() < 0.9


@pytest.mark.parametrize("made", [demo, opt])
def test_rows_do_not_depend_on_their_batch(made, monkeypatch):
    model, sparsity, rows, _ = made()
    whole = Texts(model, sparsity, rows, PROMPT)
    monkeypatch.setattr(decode_pass, "_LOGITS_IN_FLIGHT", 2 * model.config.vocab_size * rows.shape[1])
    parts = Texts(model, sparsity, rows, PROMPT)
    assert [len(batch) for batch in whole.batches] == [3]
    assert [len(batch) for batch in parts.batches] == [2, 1]
    generator = torch.Generator().manual_seed(1)
    scale = 2 * torch.rand(3, rows.shape[1] - PROMPT, generator=generator)
    opened, pools = scale < 0.5, pools_for(whole, 0.5)
    sparsity.anticipations = [anticipation(model.config.hidden_size)]
    assert_same(parts.decode(scale, pools, opened, scale), whole.decode(scale, pools, opened, scale))
    for given, wanted in zip(parts.prompt_scores, whole.prompt_scores, strict=True):
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("made", [demo, opt])
def test_prompt_scores_are_of_each_row_and_its_prompt(made):
    """score_i = sum over the prompt of h_i^2 / |h|^2, by layer and row."""
    model, sparsity, rows, _ = made()
    texts = Texts(model, sparsity, rows, PROMPT)
    inputs: dict[int, torch.Tensor] = {}
    with torch.no_grad(), sparsity.steered(0.0), shown_inputs(texts.layers, inputs.__setitem__):
        model(rows)
    for index, layer in enumerate(texts.layers):
        a, up = layer.activations(inputs[index].reshape(*rows.shape, -1)[:, :PROMPT])
        energy = (a * up).double().square()
        expected = (energy / energy.sum(-1, keepdim=True)).sum(1)
        torch.testing.assert_close(texts.prompt_scores[index].double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("made", [demo, opt])
def test_inputs_are_shown_at_decoded_tokens(made):
    """Those of a dense pass by `dense_inputs`, those that thresholds change by `decode`: each layer's own."""
    model, sparsity, rows, _ = made()
    texts = Texts(model, sparsity, rows, PROMPT)
    dense: list[dict[int, torch.Tensor]] = [{}, {}]
    with torch.no_grad(), sparsity.steered(0.0), shown_inputs(texts.layers, dense[0].__setitem__):
        model(rows)
    texts.dense_inputs(dense[1].__setitem__)
    decoded: dict[int, torch.Tensor] = {}
    texts.decode(1.0, take=lambda index, x: decoded.__setitem__(index, x.clone()))
    for index in range(len(texts.layers)):
        expected = dense[0][index].reshape(*rows.shape, -1)[:, PROMPT:]
        torch.testing.assert_close(dense[1][index], expected)
        assert decoded[index].shape == expected.shape
    # Nothing below the first layer's network is sparse at a text's first decoded token; above it all is.
    torch.testing.assert_close(decoded[0][:, 0], dense[1][0][:, 0])
    assert (decoded[1] - dense[1][1]).abs().max() > 1e-3


def test_first_rows_are_the_same_texts():
    model, sparsity, rows, _ = demo()
    texts = Texts(model, sparsity, rows, PROMPT)
    assert texts.decoded_tokens == 3 * (36 - PROMPT)
    assert texts.first(10**6) is texts
    few = texts.first(2 * 36)
    assert torch.equal(few.rows, rows[:2])
    assert torch.equal(texts.first(1).rows, rows[:1])
    decoded, all_decoded = few.decode(), texts.decode()
    torch.testing.assert_close(decoded.divergence, all_decoded.divergence[:2], rtol=2e-3, atol=2e-4)
