"""Calibration as a whole: goals are met, measurements agree with decoding, and settings are checked."""

import json
from dataclasses import replace

import pytest
import torch

from clada.errors import CladaError, UnreachableError
from clada.exporter import export as exporting
from clada.exporter import neuron_export
from clada.exporter.calibration import calibrate as calibration
from clada.exporter.calibration.calibrate import CalibrationConfig, calibrate
from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.policies import POLICIES, Policy
from clada.exporter.calibration.selection import pools_of
from clada.exporter.calibration.text import read_texts, token_rows
from clada.exporter.model.patch import sparsify
from clada.exporter.model.steering import SiteSettings
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import LAYERS, NEURONS, random_model, tiny_tokenizer
from tests.support.demo_model import patched_demo, rows_for
from tests.support.thresholds import uniform
from tests.support.token_by_token import read_rows

# What is chosen once for all tokens: quick to calibrate.
STILL = Policy("sensitivity", allocation=True, pool="blended", compensation=True)


@pytest.fixture(scope="module")
def demo():
    """The demo model, patched, and four rows of text it was not trained on."""
    model, rows, _ = patched_demo(4)
    return model, rows


def test_target_sparsity_is_reached(demo):
    """By the policy "clada" as a whole; and the reported shares are those of each layer."""
    model, rows = demo
    result = calibrate(model, rows, CalibrationConfig(target_sparsity=0.55))
    shares = [layer.realised for layer in result.layers]
    assert 0.55 <= sum(shares) / len(shares) < 0.56
    assert max(shares) - min(shares) > 0.05
    assert result.ffn_cost == pytest.approx(
        sum(layer.pool + 2 * (1 - layer.realised) for layer in result.layers) / 18, abs=0.02
    )
    for layer, threshold in zip(result.layers, result.calibrated.thresholds, strict=True):
        assert layer.median_threshold == pytest.approx(float(threshold.median()))
    assert result.tokens == 4 * 96
    assert result.prompt_tokens == 32
    load_map = result.calibrated.load_map
    for knots in (load_map.surprisal_knots, load_map.entropy_knots):
        assert (knots.diff() >= 0).all()
        assert knots[0] >= 0
    assert (load_map.scale_knots.diff() <= 0).all()
    assert (load_map.scale_knots > 0).all()
    assert 0 < load_map.reanalysis_load <= 1
    # Read as a session does, with loads and pools of its own, the model is as sparse.
    read = read_rows(model, result.calibrated, rows, 32, policy=result)
    assert float(read.active.mean()) == pytest.approx(0.45, abs=0.02)
    assert float(read.divergence.mean()) == pytest.approx(result.divergence, rel=0.2)


@pytest.mark.parametrize("budget", [0.002, 0.05])
def test_error_budget_is_kept_and_used(demo, budget):
    model, rows = demo
    result = calibrate(model, rows, CalibrationConfig(error_budget=budget, policy=STILL))
    assert 0.9 * budget < result.divergence <= budget


def test_what_is_measured_is_what_decoding_gives(demo):
    """Token by token, with the pools that a session would choose after each prompt."""
    model, rows = demo
    result = calibrate(model, rows, CalibrationConfig(ffn_cost=0.5, policy=STILL))
    pools = pools_of(result.pools, Texts(model, rows, result.prompt_tokens))
    read = read_rows(model, result.calibrated, rows, result.prompt_tokens, pools=pools)
    assert result.divergence == pytest.approx(float(read.divergence.mean()), rel=0.01)
    assert result.ffn_cost == pytest.approx(float(read.read.mean()), abs=1e-3)
    assert result.agreement == pytest.approx(float(read.agrees.float().mean()), abs=0.01)
    assert [1 - layer.realised for layer in result.layers] == pytest.approx(read.active.mean((0, 1)).tolist(), abs=2e-3)
    shares = [float(pool[0].double().mean()) for pool in pools]
    assert [layer.pool for layer in result.layers] == pytest.approx(shares)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_compensation_is_the_mean_of_what_is_left_out(family):
    """By brute force: at each decoded token, the sum of h_i w_i over the neurons that are dropped."""
    model = random_model(family)
    sparsify(model)
    settings = SiteSettings(uniform(model, 0.4))
    texts = Texts(model, rows_for(tiny_tokenizer(), 5 * 40, 40), 10)
    generator = torch.Generator().manual_seed(0)
    pools = [torch.rand(5, NEURONS, generator=generator) < 0.7 for _ in range(LAYERS)]
    inputs: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    texts.decode(settings, pools=pools, take=lambda index, x: inputs[index].append(x.clone()))
    expected = []
    for layer, parts, pool in zip(texts.layers, inputs, pools, strict=True):
        a, up = (values.double() for values in layer.activations(torch.cat(parts)))
        dropped = (a.abs() < 0.4) | ~pool.unsqueeze(1)
        assert 0.3 < dropped.double().mean() < 0.9
        expected.append((torch.where(dropped, a * up, 0) @ layer.outward.double()).mean((0, 1)))
    for given, wanted in zip(calibration._compensation(texts, settings, pools), expected, strict=True):
        assert given.dtype == torch.float32
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(given.double(), wanted, rtol=1e-3, atol=1e-5)


def test_policies_without_a_part_leave_it_out():
    model = random_model("llama")
    sparsify(model)
    rows = rows_for(tiny_tokenizer(), 4 * 64, 64)
    full = calibrate(model, rows, CalibrationConfig(policy=STILL))
    assert len(full.calibrated.compensation) == LAYERS
    assert full.pools is not None
    assert full.calibrated.load_map.reanalysis_load > 1
    less = calibrate(model, rows, CalibrationConfig(policy=replace(STILL, compensation=False, pool="")))
    assert less.calibrated.compensation == ()
    assert less.pools is None
    assert all(layer.pool == 1 for layer in less.layers)


@pytest.mark.parametrize("name", ["dense", "griffin"])
def test_nothing_stays_of_the_calibration_before(name):
    model = random_model("llama")
    sparsify(model)
    rows = rows_for(tiny_tokenizer(), 4 * 64, 64)
    calibrate(model, rows, CalibrationConfig(policy=STILL))
    result = calibrate(model, rows, CalibrationConfig(ffn_cost=0.7, policy=POLICIES[name]))
    assert not any(threshold.any() for threshold in result.calibrated.thresholds)
    assert result.calibrated.compensation == ()
    assert result.ffn_cost == pytest.approx(1 if name == "dense" else 0.7, abs=0.02)


def test_same_seed_same_thresholds():
    """Whatever was calibrated before."""
    results = []
    for seed in (0, 0, 1):
        model = random_model("opt")
        sparsify(model)
        rows = rows_for(tiny_tokenizer(), 512, 64, seed=seed)
        if results:
            calibrate(model, rows.flip(0), CalibrationConfig(target_sparsity=0.8))
        found = calibrate(model, rows, HALF_OF_NEURONS).calibrated
        results.append([*found.thresholds, *found.compensation])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_a_model_that_is_sparse_by_itself_is_not_made_sparser():
    """A ReLU network whose neurons are zero half of the time meets a third at once."""
    model = random_model("opt")
    sparsify(model)
    rows = rows_for(tiny_tokenizer(), 4 * 64, 64)
    config = CalibrationConfig(target_sparsity=0.3, policy=POLICIES["cats"])
    result = calibrate(model, rows, config)
    assert sum(layer.realised for layer in result.layers) / LAYERS > 0.4
    assert result.divergence < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 0.7, "ffn_cost": 0.6}, "several goals, target_sparsity and ffn_cost: give one of them"),
        ({"policy": POLICIES["price"], "ffn_cost": 0.6}, "the policy is price, and the goal ffn_cost"),
        ({"policy": POLICIES["cats"], "bytes": 0.6}, "the policy is cats, and the goal bytes"),
        ({"target_sparsity": 0.0}, "target sparsity is 0.0; it must lie between 0 and 1"),
        ({"target_sparsity": 1.0}, "target sparsity is 1.0; it must lie between 0 and 1"),
        ({"target_sparsity": float("nan")}, "target sparsity is nan"),
        ({"ffn_cost": 0.0}, "FFN cost is 0.0; it must lie between 0 and 1"),
        ({"ffn_cost": 1.0}, "FFN cost is 1.0; it must lie between 0 and 1"),
        ({"ffn_cost": float("nan")}, "FFN cost is nan"),
        ({"error_budget": 0.0}, "error budget is 0.0; it must be a positive number"),
        ({"error_budget": -1.0}, "error budget is -1.0; it must be a positive number"),
        ({"error_budget": float("inf")}, "error budget is inf"),
        ({"error_budget": float("nan")}, "error budget is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(CladaError, match=message):
        CalibrationConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "goal", "policy"),
    [
        ({}, ("bytes", 0.7), "price"),
        ({"bytes": 0.6}, ("bytes", 0.6), "price"),
        ({"policy": POLICIES["price"]}, ("bytes", 0.7), "price"),
        ({"target_sparsity": 0.7}, ("target_sparsity", 0.7), "clada"),
        ({"ffn_cost": 0.6}, ("ffn_cost", 0.6), "clada"),
        ({"error_budget": 0.1}, ("error_budget", 0.1), "clada"),
        ({"error_budget": 0.1, "policy": POLICIES["sats"]}, ("error_budget", 0.1), "sats"),
        ({"policy": POLICIES["cats"]}, ("target_sparsity", 0.5), "cats"),
        ({"policy": STILL}, ("target_sparsity", 0.5), "custom"),
        ({"policy": STILL, "name": "still"}, ("target_sparsity", 0.5), "still"),
    ],
)
def test_a_goal_has_its_policy_and_a_policy_its_goal(settings, goal, policy):
    config = CalibrationConfig(**settings)
    assert (config.goal.name, config.goal.value) == goal
    assert config.policy_name == policy
    assert config.rules == settings.get("policy", POLICIES.get(policy, STILL))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CalibrationConfig(target_sparsity=0.9995, policy=POLICIES["cats"]),
            r"target sparsity 0\.9995 cannot be reached",
        ),
        (CalibrationConfig(ffn_cost=0.3, policy=replace(STILL, pool="")), r"ffn cost 0\.3 cannot be reached"),
        (CalibrationConfig(ffn_cost=0.001, policy=POLICIES["griffin"]), r"ffn cost 0\.001 cannot be reached"),
    ],
)
def test_goals_out_of_reach_are_refused(config, message):
    model = random_model("llama")
    sparsify(model)
    with pytest.raises(UnreachableError, match=message):
        calibrate(model, rows_for(tiny_tokenizer(), 4 * 64, 64), config)


def test_jsonl_and_text_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps({"text": "two", "x": 1}) + "\n")
    assert read_texts(tmp_path / "a.txt") == ["one\ntwo\n"]
    assert read_texts(tmp_path / "a.jsonl") == ["one", "two"]


@pytest.mark.fault("text", "calibration data that begins with a byte-order mark", now="read without the mark")
def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("one".encode("utf-8-sig"))
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}')
    assert read_texts(tmp_path / "a.txt") == ["one"]
    assert read_texts(tmp_path / "a.jsonl") == ["one", "two"]


TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "name": None}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ raise_exception('no') if m.role == 'x' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.fault("text", "calibration on conversations", now="written by the model's chat template")
def test_conversations_are_written_by_the_chat_template(tmp_path):
    path, tokenizer = tmp_path / "a.jsonl", chat_tokenizer()
    path.write_text(json.dumps({"text": "plain"}) + "\n" + json.dumps({"messages": TURNS}))
    chat = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert chat.endswith("<user>Why?<assistant>So.")
    assert read_texts(path, tokenizer=tokenizer) == ["plain", chat]


def test_several_chat_templates_have_one_by_default(tmp_path):
    path, tokenizer = tmp_path / "a.jsonl", tiny_tokenizer()
    path.write_text(json.dumps({"messages": TURNS}))
    tokenizer.chat_template = {"tool_use": "tools", "default": TEMPLATE}
    assert read_texts(path, tokenizer=tokenizer) == [tokenizer.apply_chat_template(TURNS, tokenize=False)]
    tokenizer.chat_template = {"tool_use": "tools"}
    with pytest.raises(CladaError, match="the model has no chat template that is its default"):
        read_texts(path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "messages", "message"),
    [
        (tiny_tokenizer, TURNS, "line 2: a conversation needs a chat template, and the model has none"),
        (
            chat_tokenizer,
            [{"role": "x", "content": "y"}],
            "chat template refused the conversation: no",
        ),
        (chat_tokenizer, [{"role": "user", "content": "\ud800"}], "line 2: the conversation holds half a character"),
        (chat_tokenizer, [], "line 2: expected an object"),
        (chat_tokenizer, ["Why?"], "line 2: expected an object"),
        (chat_tokenizer, "Why?", "line 2: expected an object"),
    ],
)
def test_conversations_that_cannot_be_written_are_refused(tmp_path, tokenizer, messages, message):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + json.dumps({"messages": messages}))
    with pytest.raises(CladaError, match=message):
        read_texts(tmp_path / "a.jsonl", tokenizer=tokenizer())


class EnoughError(Exception):
    """Raised once the progress that a test waits for has been reported."""


@pytest.mark.fault("text", "calibration text that nobody chose", now="named, with a note where the model chats")
@pytest.mark.parametrize(
    ("kind", "template"),
    [("nothing", None), ("nothing", TEMPLATE), ("text", None), ("text", TEMPLATE), ("conversations", TEMPLATE)],
)
def test_export_names_what_it_calibrates_on(tmp_path, checkpoint, monkeypatch, kind, template):
    tokenizer, lines = tiny_tokenizer(), []
    tokenizer.chat_template = template
    data = None if kind == "nothing" else tmp_path / "mine.jsonl"
    if data:
        row = {"messages": TURNS * 200} if kind == "conversations" else {"text": "many words " * 400}
        data.write_text(json.dumps(row))
    load = exporting.load_model
    monkeypatch.setattr(exporting, "load_model", lambda *args, **trust: (load(*args, **trust)[0], tokenizer))
    monkeypatch.setattr(neuron_export, "sparsify", lambda model: (_ for _ in ()).throw(EnoughError))
    with pytest.raises(EnoughError):
        config = exporting.ExportConfig(HALF_OF_NEURONS, calibration_data=data, calibration_tokens=600)
        exporting.export(tmp_path / "out" / "model.onnx", str(checkpoint("llama")), config, lines.append)
    assert lines[1].endswith(str(data) if data else "tokens of Python sources, which come with clada")
    assert len(lines[2:]) == (template is not None and kind != "conversations")
    assert all(line.startswith("note: the model has a chat template") for line in lines[2:])


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
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: expected an object"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "line 1: expected an object"),
        ("a.jsonl", b"[" * 100_000, "line 1: expected an object"),
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
