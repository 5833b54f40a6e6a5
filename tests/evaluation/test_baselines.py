"""Baselines in PyTorch alone: they follow their published rules, and report their reads correctly."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from clada.errors import CladaError
from clada.evaluation.baselines import RULES, baseline, calibration_texts, cett, fit, mean_read
from clada.evaluation.evaluate import evaluate
from clada.evaluation.reference import dense_logits
from clada.evaluation.scores import log_softmax
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.suite import draw_rows, prepare
from clada.evaluation.torch_subject import TorchSubject, forward_skipping, skipping
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.text import read_texts, sample_file, token_rows
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.exporter.model.steering import steered
from clada.ops.torch import ACTIVATIONS
from tests.conftest import DEMO_MODEL, HELDOUT
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model, tiny_tokenizer, write_checkpoint
from tests.support.exhaustive import few

PROMPT = 32


def calibration_rows(tokenizer, vocabulary, tokens, length):
    return token_rows(read_texts(sample_file()), tokenizer, vocabulary=vocabulary, tokens=tokens, length=length)


@pytest.fixture(scope="module")
def demo():
    """The demo model, patched, and calibration rows."""
    model, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    sparsify(model)
    return model, calibration_rows(tokenizer, model.config.vocab_size, 1024, 256)


@pytest.fixture(scope="module")
def demo_inputs(demo):
    """Inputs f32[T, D] of each of its layers on calibration text, decoded."""
    texts = calibration_texts(*demo)
    parts = [[] for _ in texts.layers]
    texts.dense_inputs(lambda index, x: parts[index].append(x.flatten(0, 1)))
    return texts, [torch.cat(part) for part in parts]


@pytest.fixture(scope="module")
def heldout(demo):
    """Text that was neither trained nor calibrated on."""
    model, _ = demo
    _, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    settings = EvaluationSettings(sequences=24, prompt_tokens=PROMPT, decode_tokens=128)
    rows = draw_rows(read_texts(HELDOUT), tokenizer, model.config.vocab_size, settings)
    return Texts(model, torch.tensor(rows), PROMPT)


def tiny(family):
    """A tiny patched model, and calibration rows."""
    model = random_model(family)
    sparsify(model)
    return model, calibration_rows(tiny_tokenizer(), VOCABULARY, 512, 64)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_knob_at_zero_is_the_dense_model(family, name):
    """To the bit, and it reads everything, but for neurons that a ReLU has silenced."""
    model, rows = tiny(family)
    thresholds = fit(name, calibration_texts(model, rows))(0.0)
    row = rows[0].tolist()
    with steered(model):
        dense = dense_logits(model, row[:-1])[PROMPT:]
    reading = TorchSubject(model, thresholds, name, {}, {}).read(row, PROMPT)
    np.testing.assert_array_equal(reading.logits, dense)
    if family == "llama":
        assert (reading.read_fraction == 1).all()
        assert (reading.active == reading.pool).all()
    else:
        assert 0 < reading.active.mean() < 0.8 * reading.pool.mean()


class PlainLayer:
    """A layer in NumPy and float64, whose matrices skip inputs by one level each."""

    def __init__(self, layer, name, thresholds):
        self.weight = {key: layer.get_parameter(key).double().numpy() for key in layer.weight_names}
        self.activation, (*self.inward, self.outward) = ACTIVATIONS[layer.activation], layer.matrices
        self.factor, self.level = {}, {}
        for matrix, threshold in thresholds.items():
            norm = np.linalg.norm(self.weight[matrix], axis=1 if matrix == self.outward else 0)
            self.factor[matrix] = np.ones_like(norm) if name == "teal" else norm
            levels = threshold.double().numpy() * self.factor[matrix]
            np.testing.assert_allclose(levels, levels[0], rtol=1e-5)
            self.level[matrix] = levels[0]

    def kept(self, matrix, inputs, sparse):
        """The inputs of a matrix, with 0 where one is skipped."""
        if sparse and matrix in self.level:
            return inputs * (np.abs(inputs) * self.factor[matrix] >= self.level[matrix])
        return inputs

    def output(self, x, sparse):
        """Of one token, and how many inputs of each matrix are not zero."""
        inputs = {matrix: self.kept(matrix, x, sparse) for matrix in self.inward}
        z = [self.weight[m] @ inputs[m] + self.weight.get(m.replace("w_", "b_"), 0) for m in self.inward]
        h = np.prod([self.activation(torch.from_numpy(z[0])).numpy(), *z[1:]], axis=0)
        inputs[self.outward] = self.kept(self.outward, h, sparse)
        y = inputs[self.outward] @ self.weight[self.outward] + self.weight.get("b_out", 0)
        return y, {matrix: int(np.count_nonzero(value)) for matrix, value in inputs.items()}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_rules_are_those_of_the_papers(family, name):
    """One layer, token by token: the values kept, of which matrices, and the output."""
    model, rows = tiny(family)
    layer = sparse_layers(model)[1]
    thresholds = fit(name, calibration_texts(model, rows))(0.4)[1]
    assert list(thresholds) == (layer.matrices[-1:] if name == "tt" else layer.matrices)
    plain = PlainLayer(layer, name, thresholds)
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    sparse = torch.tensor([True] * 6 + [False])
    y, counts = forward_skipping(layer, x, thresholds, sparse)
    for token in range(7):
        expected, kept = plain.output(x[token].double().numpy(), bool(sparse[token]))
        np.testing.assert_allclose(y[token], expected, rtol=1e-4, atol=1e-5)
        assert {matrix: int(count[token]) for matrix, count in counts.items()} == {m: kept[m] for m in thresholds}
        dense = plain.output(x[token].double().numpy(), False)[1]
        assert (sum(kept.values()) < sum(dense.values())) == bool(sparse[token])


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_one_pass_is_what_decode_computes(family):
    """Token by token with a cache, the prompt dense: the same logits, bytes read and active neurons."""
    model, rows = tiny(family)
    subject = baseline("wina", model, rows, 0.4)
    row = rows[1].tolist()
    reading = subject.read(row, PROMPT)
    cache, before = DynamicCache(), None
    with torch.no_grad():
        for start, stop in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, len(row) - 1))]:
            ids = torch.tensor([row[start:stop]])
            with skipping(model, subject.thresholds, torch.full(ids.shape, start > 0)) as counts:
                logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1].numpy()
            if start:
                np.testing.assert_allclose(reading.logits[start - PROMPT], logits, atol=1e-4)
                log_p = log_softmax(before)
                assert reading.surprisal[start - PROMPT] == pytest.approx(-log_p[row[start]], abs=1e-4)
                assert reading.entropy[start - PROMPT] == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-4)
                active = [int(of[layer.matrices[-1]]) for layer, of in zip(subject.layers, counts, strict=True)]
                assert reading.active[start - PROMPT].tolist() == active
                # All layers and all matrices are of one size, so what is read is the mean share of inputs.
                shares = [
                    float(n) / (NEURONS if m in ("w_down", "w_out") else 48) for of in counts for m, n in of.items()
                ]
                assert reading.read_fraction[start - PROMPT] == pytest.approx(np.mean(shares), rel=1e-5)
            before = logits


@pytest.mark.parametrize(("name", "cost"), few([("tt", 0.3), ("teal", 0.5), ("wina", 0.4)], [("tt", 0.3)]))
def test_cost_is_met_on_other_text(demo, heldout, name, cost):
    """On 3072 tokens: a rule's reads vary with the text, by a twentieth from row to row."""
    subject = baseline(name, *demo, cost)
    assert subject.info.calibration["ffn_cost"] == pytest.approx(cost, rel=0.01)
    assert mean_read(heldout, subject.thresholds) == pytest.approx(cost, rel=0.03)
    reading = subject.read(heldout.rows[0].tolist(), PROMPT)
    if name == "tt":  # its predictor has every matrix read for the neurons that are kept
        np.testing.assert_allclose(reading.read_fraction, (reading.active / reading.pool).mean(axis=1), rtol=1e-5)
    assert reading.read_fraction.mean() == pytest.approx(cost, rel=0.2)


def test_tt_meets_its_cett(demo_inputs):
    """As measured layer by layer, by the definition."""
    texts, inputs = demo_inputs
    thresholds_of = fit("tt", texts)
    for target in (0.02, 0.2):
        for layer, x, thresholds in zip(texts.layers, inputs, thresholds_of(target), strict=True):
            matrix = layer.matrices[-1]
            counted = torch.ones(len(x), dtype=torch.bool)
            whole, _ = forward_skipping(layer, x, {}, counted)
            left, _ = forward_skipping(layer, x, thresholds, counted)
            error = ((whole - left).norm(dim=-1) / whole.norm(dim=-1)).mean()
            assert float(error) == pytest.approx(target, rel=0.01)
            assert cett(layer, x, thresholds[matrix]) == pytest.approx(float(error), rel=1e-3)


def test_cett_and_what_is_dropped_grow_together(demo_inputs):
    texts, inputs = demo_inputs
    thresholds_of = fit("tt", texts)
    targets = (0.0, 0.01, 0.05, 0.2, 0.6)
    chosen = [thresholds_of(target) for target in targets]
    for layer, x, *of_layer in zip(texts.layers, inputs, *chosen, strict=True):
        values = [cett(layer, x, thresholds[layer.matrices[-1]]) for thresholds in of_layer]
        assert values[0] == 0
        assert np.all(np.diff(values) > 0)
    reads = [mean_read(texts, thresholds) for thresholds in chosen]
    assert reads[0] == pytest.approx(1)
    assert np.all(np.diff(reads) < 0)


def layer_errors(texts, inputs, name, share):
    """Relative error of each layer's output, and the share of its inputs that are kept."""
    errors, shares = [], []
    for layer, x, thresholds in zip(texts.layers, inputs, fit(name, texts)(share), strict=True):
        sparse = torch.ones(len(x), dtype=torch.bool)
        whole, _ = forward_skipping(layer, x, {}, sparse)
        left, counts = forward_skipping(layer, x, thresholds, sparse)
        errors.append(float(((whole - left).norm(dim=-1) / whole.norm(dim=-1)).mean()))
        shares.append(float(np.mean([count.float().mean() / thresholds[m].numel() for m, count in counts.items()])))
    return np.array(errors), np.array(shares)


def test_column_norms_help(demo_inputs):
    """By them wina leaves a smaller error than teal in the layers' outputs, at the same share of inputs."""
    for share in (0.25, 0.5):
        errors, shares = zip(*(layer_errors(*demo_inputs, name, share) for name in ("teal", "wina")), strict=True)
        np.testing.assert_allclose(shares[0], shares[1], atol=0.01)
        assert errors[1].mean() < errors[0].mean()


def test_relu_that_is_sparse_by_itself_stays_dense_under_tt():
    model, rows = tiny("opt")
    subject = baseline("tt", model, rows, 0.9)
    assert subject.info.calibration["cett"] == 0
    assert 0.1 < subject.info.calibration["ffn_cost"] < 0.9


def test_results_say_what_a_baseline_is(tmp_path):
    """Evaluated like any other; the model that it is measured against stays dense meanwhile."""
    checkpoint = write_checkpoint(tmp_path / "hf", "llama")
    model, tokenizer = load_model(str(checkpoint), torch.float32)
    settings = EvaluationSettings(sequences=2, prompt_tokens=16, decode_tokens=20, generation_tokens=4)
    suite = prepare(model, tokenizer, HELDOUT, settings)
    dense = dense_logits(model, suite.rows[0])
    rows = calibration_rows(tokenizer, VOCABULARY, 512, 64)
    sparsify(model)
    subject = baseline("tt", model, rows, 0.4)
    evaluation = evaluate(subject, suite)
    assert evaluation.metrics["kl"].value > 1e-4
    assert evaluation.metrics["read_fraction"].value == pytest.approx(0.4, rel=0.2)
    np.testing.assert_allclose(dense_logits(model, suite.rows[0]), dense, atol=1e-5)
    info = subject.info
    assert (info.name, info.policy["name"], info.policy["pytorch_only"]) == ("tt (PyTorch only)", "tt", True)
    assert info.policy["oracle"]
    assert info.calibration["tokens"] == 48 * len(rows)
    assert info.ffn_bytes == 4 * 3 * LAYERS * NEURONS * 48


@pytest.mark.parametrize("cost", [0.0, 1.0, float("nan"), 1e-7])
def test_costs_that_cannot_be_met(cost):
    model, rows = tiny("llama")
    with pytest.raises(CladaError, match=r"the FFN cost .* (must lie between 0 and 1|cannot be reached by teal)"):
        baseline("teal", model, rows, cost)
