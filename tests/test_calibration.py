"""Calibration: every policy meets its goal, clada's parts each earn their place, and text is read as it should be."""

import json

import pytest
import torch

from clada.exporter.calibrate import CalibrationConfig, calibrate, prompt_tokens
from clada.exporter.calibration_text import read_texts, sample_file, token_rows
from clada.exporter.checkpoint import load_model
from clada.exporter.decode_pass import Texts
from clada.exporter.patch import sparsify
from clada.exporter.policies import POLICIES, without
from clada.exporter.selection import pools_of
from clada.plugins.errors import CladaError, UnreachableError
from tests.checkpoints import random_model, tiny_tokenizer
from tests.conftest import DEMO_MODEL, ROOT

# clada without what adapts it from token to token: what follows from thresholds, pools and compensation alone.
STATIC = without(POLICIES["clada"], "load")


# Where the inward matrix, read for the whole pool, is most of what may be read.
COST = 0.42


def rows_for(tokenizer, tokens: int = 512, length: int = 64, seed: int = 0) -> torch.Tensor:
    texts = read_texts(sample_file())
    return token_rows(texts, tokenizer, vocabulary=len(tokenizer), tokens=tokens, length=length, seed=seed)


@pytest.fixture(scope="module")
def demo():
    """The demo model, patched, its state, rows to calibrate on and held-out rows."""
    model, tokenizer = load_model(str(DEMO_MODEL), torch.float32)
    held_out = token_rows(
        read_texts(ROOT / "benchmarks" / "data" / "heldout.jsonl"),
        tokenizer,
        vocabulary=model.config.vocab_size,
        tokens=2048,
        length=256,
    )
    return model, sparsify(model), rows_for(tokenizer, 1024, 256), held_out


@pytest.fixture(scope="module")
def calibrated(demo):
    """A function of a policy: its calibration for COST of the bytes, and its KL divergence on held-out text."""
    model, sparsity, rows, held_out = demo
    made = {}

    def measure(policy):
        if policy not in made:
            result = calibrate(model, sparsity, rows, CalibrationConfig(ffn_cost=COST, policy=policy))
            thresholds, compensation = list(sparsity.thresholds), sparsity.compensation
            sparsity.thresholds[:], sparsity.compensation = [torch.zeros_like(t) for t in thresholds], []
            sparsity.anticipation = None
            texts = Texts(model, sparsity, held_out, prompt_tokens(256))
            sparsity.thresholds[:], sparsity.compensation = thresholds, compensation
            decoded = texts.decode(pools=pools_of(result.pools, texts))
            made[policy] = result, float(decoded.divergence.mean()), float(decoded.read.mean())
        return made[policy]

    return measure


@pytest.mark.parametrize("name", ["clada", "sats", "cats", "griffin"])
def test_a_policy_reads_what_it_was_asked_to(calibrated, name):
    result, _, read = calibrated(POLICIES[name])
    assert 0.98 * COST <= result.ffn_cost <= COST + 1e-6
    # Here no load opens pools.
    assert read == pytest.approx(COST, abs=0.03) or (POLICIES[name].reanalysis and 0.8 * COST < read < COST)


def test_dense_computes_everything(demo):
    model, sparsity, rows, _ = demo
    result = calibrate(model, sparsity, rows, CalibrationConfig(policy=POLICIES["dense"]))
    assert result.divergence == pytest.approx(0, abs=1e-6)
    assert result.ffn_cost == 1
    assert result.pools is None


@pytest.mark.parametrize("other", ["cats", "griffin"])
def test_clada_diverges_by_less_than_half_of_what_others_do(calibrated, other):
    """On text that neither was calibrated on, at the same bytes, even without what adapts it token by token."""
    assert calibrated(STATIC)[1] < 0.5 * calibrated(POLICIES[other])[1]


@pytest.mark.parametrize("part", ["allocation", "compensation"])
def test_each_part_earns_its_place(calibrated, part):
    assert calibrated(STATIC)[1] < calibrated(without(STATIC, part))[1]


def test_a_pool_reads_less_than_the_inward_matrix(demo):
    """Without one a third of the bytes is read whatever the thresholds are."""
    model, sparsity, rows, _ = demo
    assert calibrate(model, sparsity, rows, CalibrationConfig(ffn_cost=0.3, policy=STATIC)).ffn_cost <= 0.3
    with pytest.raises(UnreachableError, match=r"the ffn cost 0.3 cannot be reached"):
        calibrate(model, sparsity, rows, CalibrationConfig(ffn_cost=0.3, policy=without(STATIC, "pool")))


def test_cats_cannot_read_less_than_the_inward_matrix(demo):
    model, sparsity, rows, _ = demo
    with pytest.raises(UnreachableError, match=r"the ffn cost 0.2 cannot be reached by this policy: the nearest is"):
        calibrate(model, sparsity, rows, CalibrationConfig(ffn_cost=0.2, policy=POLICIES["cats"]))


@pytest.mark.parametrize("budget", [0.02])
def test_error_budget_is_kept_and_used(demo, budget):
    model, sparsity, rows, _ = demo
    result = calibrate(model, sparsity, rows, CalibrationConfig(error_budget=budget, policy=STATIC))
    assert 0.7 * budget < result.divergence <= budget


def test_target_sparsity_is_reached(demo):
    model, sparsity, rows, _ = demo
    result = calibrate(model, sparsity, rows, CalibrationConfig(target_sparsity=0.6, policy=STATIC))
    assert sum(layer.realised for layer in result.layers) / len(result.layers) == pytest.approx(0.6, abs=0.01)


def test_load_map_is_of_quantiles_and_never_tightens_under_load(calibrated):
    load_map = calibrated(POLICIES["clada"])[0].load_map
    for knots in (load_map.surprisal_knots, load_map.entropy_knots):
        assert (knots.diff() >= 0).all()
        assert knots[0] >= 0
    assert (load_map.scale_knots > 0).all()
    assert (load_map.scale_knots.diff() <= 0).all()
    assert 0 < load_map.reanalysis_load <= 1


def test_same_seed_same_thresholds():
    results = []
    for seed in (0, 0, 1):
        model = random_model("opt")
        rows = rows_for(tiny_tokenizer(), seed=seed)
        sparsity = sparsify(model)
        calibrate(model, sparsity, rows, CalibrationConfig(target_sparsity=0.7))
        results.append(list(sparsity.thresholds))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 0.0}, "target sparsity is 0.0; it must lie between 0 and 1"),
        ({"target_sparsity": 1.0}, "target sparsity is 1.0; it must lie between 0 and 1"),
        ({"target_sparsity": float("nan")}, "target sparsity is nan"),
        ({"ffn_cost": 1.5}, "FFN cost is 1.5; it must lie between 0 and 1"),
        ({"error_budget": -1.0}, "error budget is -1.0; it must be a positive number"),
        ({"error_budget": float("inf")}, "error budget is inf"),
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
