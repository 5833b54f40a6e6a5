"""Calibration: what is allocated, what is measured, and that the two agree."""

import itertools
import json

import numpy as np
import pytest
import torch

from clada.exporter import calibrate as calibration
from clada.exporter.allocation import ALLOCATIONS, GRID, cost_curve, equal_cost, equal_marginal_cost
from clada.exporter.calibrate import CalibrationConfig, calibrate
from clada.exporter.calibration_text import read_texts, sample_file, token_rows
from clada.exporter.checkpoint import load_model
from clada.exporter.neurons import neuron_statistics, relative_error
from clada.exporter.partial_forward import input_of, logits_from
from clada.exporter.patch import sparse_layers, sparsify
from clada.plugins.errors import CladaError
from tests.checkpoints import NEURONS, random_model, tiny_tokenizer
from tests.conftest import DEMO_MODEL


def rows_for(tokenizer, tokens: int = 512, length: int = 64, seed: int = 0) -> torch.Tensor:
    texts = read_texts(sample_file())
    return token_rows(texts, tokenizer, vocabulary=len(tokenizer), tokens=tokens, length=length, seed=seed)


@pytest.fixture(scope="module")
def demo():
    """The demo model, patched, its state and rows of text it was not trained on."""
    model, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    return model, sparsify(model), rows_for(tokenizer, 2048, 256)


def test_equal_marginal_cost_is_the_minimum():
    """No other way to share the same sparsity among the layers costs less."""
    rng = np.random.default_rng(0)
    x = np.array([0.0, *GRID])
    costs = np.cumsum(np.cumsum(rng.uniform(0, 1, (3, len(GRID))), axis=1) * np.diff(x), axis=1) ** 2
    curves = [cost_curve(cost) for cost in costs]

    def total(shares) -> float:
        return sum(np.interp(share, *curve) for share, curve in zip(shares, curves, strict=True))

    steps = np.linspace(0, GRID[-1], 39)
    for mean in (0.2, 0.5, 0.8):
        shares = equal_marginal_cost(costs, mean)
        assert shares.mean() == pytest.approx(mean)
        others = [(a, b, 3 * mean - a - b) for a, b in itertools.product(steps, steps)]
        assert total(shares) <= min(total(other) for other in others if 0 <= other[2] <= GRID[-1]) + 1e-9


def test_free_sparsity_is_taken_first():
    """A ReLU layer that is sparse by itself is given its sparsity before any other layer loses a neuron."""
    costs = np.array([[0, 0, 0, 0, 1.0], [0.1, 0.2, 0.4, 0.8, 2.0]])
    np.testing.assert_allclose(equal_marginal_cost(costs, 0.4), [0.8, 0.0])


def test_noise_below_zero_is_no_gain():
    """A divergence measured a little lower at more sparsity does not break the search."""
    shares = equal_marginal_cost(np.array([[0.2, 0.1, 0.3, 0.2, 0.5]] * 2), 0.6)
    assert shares.mean() == pytest.approx(0.6)
    assert (shares >= 0).all()


def test_equal_cost_levels_the_layers():
    costs = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.4, 0.6, 0.8, 1.0]])
    shares = equal_cost(costs, 0.5)
    assert shares.mean() == pytest.approx(0.5, abs=1e-6)
    levels = [np.interp(s, [0, *GRID], [0, *cost]) for s, cost in zip(shares, costs, strict=True)]
    assert levels[0] == pytest.approx(levels[1], abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("importance", ["contribution", "activation"])
def test_thresholds_follow_the_formula(family, importance):
    """threshold_i = tau / c_i, tau the quantile of |a_i| c_i: checked against plain NumPy."""
    model = random_model(family)
    sparsify(model)
    layer = sparse_layers(model)[1]
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    statistics = neuron_statistics(layer, [x[:50], x[50:]], importance)

    weights = {name: layer.get_parameter(name).double().numpy() for name in layer.weight_names}
    inputs = x.double().numpy()
    if family == "llama":
        z, up = inputs @ weights["w_gate"].T, inputs @ weights["w_up"].T
        a, outward = z / (1 + np.exp(-z)), weights["w_down"]
    else:
        z = torch.from_numpy(inputs @ weights["w_in"].T + weights["b_in"])
        a, up, outward = torch.nn.functional.gelu(z).numpy(), np.ones((200, NEURONS)), weights["w_out"]
    c = np.linalg.norm(outward, axis=1) * np.sqrt((up**2).mean(axis=0))
    c = c if importance == "contribution" else np.ones(NEURONS)
    np.testing.assert_allclose(statistics.importance.numpy(), c, rtol=1e-5)
    tau = np.quantile(np.abs(a) * c, 0.4)
    np.testing.assert_allclose(statistics.threshold(0.4).numpy(), tau / c, rtol=1e-3)
    assert (np.abs(a) < statistics.threshold(0.4).numpy()).mean() == pytest.approx(0.4, abs=0.005)


def test_a_neuron_that_adds_nothing_gets_a_finite_threshold():
    model = random_model("opt")
    sparsify(model)
    layer = sparse_layers(model)[0]
    with torch.no_grad():
        layer.w_out[3] = 0
    statistics = neuron_statistics(layer, [torch.randn(20, 48)], "contribution")
    for sparsity in (0.0, 0.9):
        threshold = statistics.threshold(sparsity)
        assert torch.isfinite(threshold).all()
    assert threshold[3] > 1e30


def test_relative_error_grows_with_sparsity():
    model = random_model("llama")
    sparsify(model)
    layer, x = sparse_layers(model)[0], torch.randn(60, 48)
    statistics = neuron_statistics(layer, [x], "contribution")
    errors = [relative_error(layer, [x], statistics.threshold(s)) for s in (0.0, 0.3, 0.6, 0.9)]
    assert errors[0] < 1e-6
    assert errors == sorted(errors)


def test_layer_cost_is_the_divergence_of_that_layer_alone(demo):
    """The streamed measurement equals a plain one: whole passes, one layer with thresholds, KL of the output."""
    model, sparsity, rows = demo
    rows = rows[:2]
    result = calibrate(model, sparsity, rows, CalibrationConfig())
    prefix = calibration.DENSE_PREFIX
    sparsity.thresholds[:] = [torch.zeros_like(t) for t in sparsity.thresholds]
    dense = torch.log_softmax(logits_from(model, rows)[:, prefix:].double(), -1)
    index, column = 2, GRID.index(0.6)
    layer = sparse_layers(model)[index]
    x = input_of(model, layer, rows)[:, prefix:].flatten(0, 1)
    sparsity.thresholds[index] = neuron_statistics(layer, [x], "contribution").threshold(0.6)
    scale = torch.ones(rows.shape)
    scale[:, :prefix] = 0
    with sparsity.steered(scale=scale):
        sparse = torch.log_softmax(logits_from(model, rows)[:, prefix:].double(), -1)
    expected = float((dense.exp() * (dense - sparse)).sum(-1).mean())
    assert result.layers[index].cost[column] == pytest.approx(expected, rel=1e-3)


def test_measured_allocation_beats_the_others(demo):
    """On a model that was really trained: less divergence at the same sparsity."""
    model, sparsity, rows = demo
    outcome = {
        name: calibrate(model, sparsity, rows, CalibrationConfig(target_sparsity=0.6, allocation=name))
        for name in ALLOCATIONS
    }
    for result in outcome.values():
        assert np.mean([layer.realised for layer in result.layers]) == pytest.approx(0.6, abs=0.05)
    assert outcome["kl"].divergence < outcome["uniform"].divergence
    assert outcome["kl"].divergence < outcome["cett"].divergence


def test_contribution_beats_plain_activation(demo):
    model, sparsity, rows = demo
    ours, cats = (
        calibrate(model, sparsity, rows, CalibrationConfig(allocation="uniform", importance=importance)).divergence
        for importance in ("contribution", "activation")
    )
    assert ours < cats


@pytest.mark.parametrize("budget", [0.01, 0.1])
def test_error_budget_is_kept_and_used(demo, budget):
    model, sparsity, rows = demo
    result = calibrate(model, sparsity, rows, CalibrationConfig(error_budget=budget))
    assert 0.7 * budget < result.divergence <= budget


def test_load_map_is_of_quantiles(demo):
    model, sparsity, rows = demo
    load_map = calibrate(model, sparsity, rows, CalibrationConfig(allocation="uniform")).load_map
    for knots in (load_map.surprisal_knots, load_map.entropy_knots):
        assert (knots.diff() >= 0).all()
        assert knots[0] >= 0
    assert (load_map.scale_knots.diff() <= 0).all()
    assert load_map.scale_knots.mean() == pytest.approx(1)
    assert 0.9 < load_map.reanalysis_load <= 1


def test_same_seed_same_thresholds():
    results = []
    for seed in (0, 0, 1):
        model = random_model("opt")
        rows = rows_for(tiny_tokenizer(), seed=seed)
        results.append(calibrate(model, sparsify(model), rows, CalibrationConfig()).thresholds)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 0.0}, "target sparsity is 0.0; it must lie between 0 and 1"),
        ({"target_sparsity": 1.0}, "target sparsity is 1.0; it must lie between 0 and 1"),
        ({"target_sparsity": float("nan")}, "target sparsity is nan"),
        ({"target_sparsity": 0.99}, "no layer is given more than 0.95"),
        ({"error_budget": -1.0}, "error budget is -1.0; it must be a positive number"),
        ({"error_budget": float("inf")}, "error budget is inf"),
        ({"allocation": "magic"}, "allocation 'magic' is not one of kl, cett, uniform"),
        ({"importance": "magic"}, "importance 'magic' is not one of contribution, activation"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(CladaError, match=message):
        CalibrationConfig(**settings)


def test_jsonl_and_text_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps({"text": "two", "x": 1}) + "\n")
    assert read_texts(tmp_path / "a.txt") == ["one\ntwo\n"]
    assert read_texts(tmp_path / "a.jsonl") == ["one", "two"]


def test_unusual_line_separators_do_not_end_a_jsonl_line(tmp_path):
    """JSON allows U+2028 and U+0085 inside a string; only a line feed ends a line."""
    text = "one\u2028two\u0085three"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_texts(tmp_path / "a.jsonl") == [text]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"  \n ", "is empty"),
        ("a.txt", b"ab\xff", "is not UTF-8 text: byte 2 is invalid"),
        ("a.jsonl", b'{"text": "x"}\n{"t": 1}\n', 'line 2: expected an object with a "text" field'),
        ("a.jsonl", b"nonsense\n", "line 1: expected an object"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: expected an object"),
    ],
)
def test_bad_calibration_data_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CladaError, match=message):
        read_texts(path)


def test_too_little_calibration_data_is_refused():
    with pytest.raises(CladaError, match=r"calibration data has \d+ tokens; at least \d+ are needed"):
        token_rows(["only a few words"], tiny_tokenizer(), vocabulary=512, tokens=1000, length=64)
