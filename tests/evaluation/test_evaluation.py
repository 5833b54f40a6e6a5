"""Evaluation: measured in decode, against the dense model, on text drawn by the settings."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clada.errors import CladaError
from clada.evaluation.cloze import CONTEXT_IN_DECODE, identifiers
from clada.evaluation.evaluate import evaluate
from clada.evaluation.exported import evaluate_artifact
from clada.evaluation.paired import paired_difference
from clada.evaluation.reference import dense_continuation, dense_log_likelihoods, dense_logits
from clada.evaluation.result import result_json
from clada.evaluation.scores import log_likelihoods, log_softmax, token_scores
from clada.evaluation.session_subject import SessionSubject
from clada.evaluation.settings import EvaluationSettings
from clada.evaluation.shuffled import ShuffledLoad
from clada.evaluation.statistics import bootstrap, mean, ratio
from clada.evaluation.subject import Reading, Subject, SubjectInfo
from clada.evaluation.suite import draw_rows, prepare
from clada.evaluation.tasks import CANDIDATES, choice_items
from clada.exporter.calibration.text import read_texts
from clada.exporter.export import ExportConfig, export
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparsify
from clada.exporter.model.steering import Steering, steered
from clada.exporter.verify import scale_of_load
from clada.runtime import GenerationConfig, Session
from clada.runtime.cli import main as clada_main
from tests.conftest import DEMO_MODEL, HELDOUT
from tests.project.test_bad_input import fails_with, snapshot
from tests.support.artifacts import HALF_OF_NEURONS
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model, write_checkpoint
from tests.support.manifests import read_manifest

SETTINGS = EvaluationSettings(sequences=4, prompt_tokens=40, decode_tokens=64, generation_tokens=12)
SMALL = ["--sequences", 3, "--prompt-tokens", 16, "--decode-tokens", 40, "--generation-tokens", 5, "--threads", 1]


class PyTorchSubject(Subject):
    """Hugging Face model read in one pass, which gives the same as decode where no load is involved."""

    def __init__(self, model, name="dense"):
        self.model, config = model, model.config
        layers, neurons = config.num_hidden_layers, config.intermediate_size
        self.info = SubjectInfo(
            name=name,
            family=config.model_type,
            neurons=(neurons,) * layers,
            parameters=model.num_parameters(),
            ffn_bytes=4 * 3 * layers * neurons * config.hidden_size,
            context_length=config.max_position_embeddings,
            vocabulary=config.vocab_size,
            policy={"name": name},
            calibration={},
        )

    def read(self, row, prompt_tokens):
        """All at once."""
        logits = dense_logits(self.model, row)[prompt_tokens:-1]
        nothing, ones = np.zeros(len(logits), np.float32), np.ones(len(logits), np.float32)
        neurons = np.tile(np.array(self.info.neurons, np.int32), (len(logits), 1))
        return Reading(logits, nothing, nothing, nothing, ones, neurons, neurons)


@pytest.fixture(scope="module")
def demo():
    """The demo model in PyTorch, dense, and its tokenizer."""
    return load_model(str(DEMO_MODEL), torch.float32)


@pytest.fixture(scope="module")
def suite(demo):
    return prepare(*demo, HELDOUT, SETTINGS)


@pytest.fixture(scope="module")
def subject(demo_session):
    return SessionSubject(demo_session)


@pytest.fixture(scope="module")
def sparse(subject, suite):
    return evaluate(subject, suite)


def test_dense_model_is_as_good_as_itself(demo, suite):
    """Nothing is lost to a subject that computes everything, in any figure."""
    evaluation = evaluate(PyTorchSubject(demo[0]), suite)
    figures = {name: estimate.value for name, estimate in evaluation.metrics.items()}
    assert figures["kl"] == pytest.approx(0, abs=1e-9)
    assert figures["disagreement"] == figures["sparsity"] == 0
    assert figures["read_fraction"] == 1
    assert figures["ffn_bytes"] == evaluation.subject.ffn_bytes
    assert figures["exact_match_length"] == SETTINGS.generation_tokens
    for name in ("perplexity", "accuracy", "choice_accuracy", "cloze_accuracy"):
        assert figures[f"{name}_ratio"] == pytest.approx(1, abs=1e-6)
        assert figures[name] == pytest.approx(figures[f"dense_{name}"], rel=1e-6)
    assert figures["dense_perplexity"] < 30
    assert figures["choice_accuracy"] > 0.5


def test_sparse_model_costs_something(sparse, suite):
    figures = {name: estimate.value for name, estimate in sparse.metrics.items()}
    assert 1e-4 < figures["kl"] < 0.1
    assert 0.4 < figures["sparsity"] < 0.6
    assert figures["dense_perplexity"] < 30
    assert figures["perplexity_ratio"] == pytest.approx(figures["perplexity"] / figures["dense_perplexity"], rel=1e-6)
    assert figures["perplexity_ratio"] == pytest.approx(1, abs=0.1)
    active = np.concatenate([reading.active for reading in sparse.readings])
    pool = np.concatenate([reading.pool for reading in sparse.readings])
    read = (pool + 2.0 * active).sum() / (3 * len(active) * sum(sparse.subject.neurons))
    assert figures["read_fraction"] == pytest.approx(read, rel=1e-4)
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in sparse.metrics.values())
    assert sparse.subject.ffn_bytes == 4 * 3 * 6 * 704 * 256


def test_decode_is_what_pytorch_computes_in_one_pass(demo_artifact, demo_session, subject, suite):
    """Token by token with a cache: the patched model, given each token's scale, load and pool, predicts the same."""
    model, _ = load_model(str(DEMO_MODEL), torch.float32)
    sparsify(model)
    calibrated = Calibrated.from_graph(demo_artifact)
    assert len(calibrated.compensation) == 6
    prompt, differences, costs = SETTINGS.prompt_tokens, [], []
    for row in suite.rows[:2]:
        reading = subject.read(row, prompt)
        state = demo_session.prefill([row[:prompt]])
        # Every token by itself, [S, 1, D] in each layer: a pool is then a token's own.
        pools = [torch.ones(len(row), neurons, dtype=torch.bool) for neurons in subject.info.neurons]
        for at, token in enumerate(row[prompt:-1], start=prompt):
            masks = state.masks
            stats = demo_session.decode(state, [token])[0]
            np.testing.assert_array_equal(state.logits[0], reading.logits[at - prompt])
            if stats.pool != subject.info.neurons:  # it was not opened
                for pool, mask in zip(pools, masks, strict=True):
                    pool[at] = torch.from_numpy(mask[0])
        scale, load = torch.zeros(2, len(row), 1)
        scale[prompt:-1, 0] = scale_of_load(reading.load, calibrated.load_map.scale_knots)
        load[prompt:-1, 0] = torch.from_numpy(reading.load)
        with steered(model, Steering(calibrated, scale, pools, load)) as trace:
            expected = dense_logits(model, row)[prompt:-1]
        active = np.stack([kept.flatten()[prompt:-1].numpy() for kept in trace.active.values()], axis=1)
        assert (active == reading.active).mean() > 0.95
        differences.append(np.abs(reading.logits - expected).max(axis=1) / np.ptp(expected, axis=1))
        costs.append(np.abs(expected - dense_logits(model, row)[prompt:-1]).max(axis=1) / np.ptp(expected, axis=1))
    # Rounding may carry a neuron across its threshold, now and then.
    assert np.median(differences) < 1e-4
    assert np.quantile(differences, 0.9) < 0.1 * np.median(costs)


def test_telemetry_is_of_the_token_that_is_read(subject, suite):
    """Surprisal and entropy belong to the prediction of the token itself, the logits to that of the next token."""
    row = suite.rows[0]
    reading = subject.read(row, SETTINGS.prompt_tokens)
    log_p = log_softmax(reading.logits)
    came = row[SETTINGS.prompt_tokens + 1 : -1]
    np.testing.assert_allclose(reading.surprisal[1:], -log_p[np.arange(len(came)), came], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(reading.entropy[1:], -(np.exp(log_p) * log_p).sum(axis=-1)[:-1], rtol=1e-3, atol=1e-4)


def test_endings_are_read_as_if_each_was_the_only_one(subject, suite):
    item = suite.tasks[1].items[0]
    assert item.prompt_tokens < len(item.context)
    given = subject.read_endings(item.context, item.prompt_tokens, item.candidates)
    alone = Subject.read_endings(subject, item.context, item.prompt_tokens, item.candidates)
    for ours, expected, ending in zip(given, alone, item.candidates, strict=True):
        assert ours.shape == (len(ending), subject.info.vocabulary)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "opt"])
def test_dense_endings_are_those_of_one_pass(family):
    model = random_model(family)
    context, endings = list(range(3, 20)), [[4, 9, 8], [7], [100, 2]]
    for given, ending in zip(dense_log_likelihoods(model, context, endings), endings, strict=True):
        logits = dense_logits(model, context + ending)[len(context) - 1 : -1]
        assert given == pytest.approx(log_likelihoods(logits, ending).sum(), rel=1e-4)


def test_exact_match_is_that_of_generation(demo_session, sparse, suite):
    """Reading the dense continuation stops where generating by itself would have gone another way."""
    count = SETTINGS.generation_tokens
    for row, continuation, length in zip(suite.rows, suite.continuations, sparse.sequences["exact_match"], strict=True):
        pieces = list(demo_session.stream(row[: SETTINGS.prompt_tokens], GenerationConfig(max_new_tokens=count + 1)))
        same = [piece.token == token for piece, token in zip(pieces, continuation, strict=True)]
        assert same[0]
        assert length == [*same[1:], False].index(False)
    assert sparse.sequences["exact_match"].max() > 0


def test_dense_continuation_is_greedy(demo):
    prompt = demo[1]("import os\n").input_ids
    tokens = dense_continuation(demo[0], prompt, 8)
    assert tokens == dense_logits(demo[0], [*prompt, *tokens]).argmax(axis=-1)[len(prompt) - 1 : -1].tolist()


def test_choice_asks_for_what_comes_next(suite):
    items = suite.tasks[0].items
    assert len(items) == 4 * SETTINGS.sequences
    for item in items:
        row, end = suite.rows[item.row], len(item.context)
        assert list(item.context) == row[:end]
        assert list(item.candidates[item.right]) == row[end : end + 12]
        assert item.prompt_tokens == end - 1 >= SETTINGS.prompt_tokens
        assert len(set(item.candidates)) == CANDIDATES
        assert {len(candidate) for candidate in item.candidates} == {12}


def test_right_answers_are_at_no_place_more_often():
    """A subject that finds all candidates the same is right by chance alone."""
    rows = np.random.default_rng(0).integers(0, 1000, (200, 80)).tolist()
    places = np.bincount([item.right for item in choice_items(rows, 20, seed=3)], minlength=CANDIDATES)
    assert places.min() > 150
    assert places.sum() == 800


def test_no_question_where_the_text_only_repeats():
    assert choice_items([[5] * 80, [5] * 80], 20, seed=0) == []


def test_cloze_asks_for_an_identifier_of_the_context(demo, suite):
    items = suite.tasks[1].items
    assert len(items) >= 2 * SETTINGS.sequences
    for item in items:
        context = demo[1].decode(item.context)
        names = [demo[1].decode(candidate).strip() for candidate in item.candidates]
        assert all(name.isidentifier() and name in context for name in names)
        assert len(set(names)) == CANDIDATES
        row, end = suite.rows[item.row], len(item.context)
        answer = item.candidates[item.right]
        assert list(answer) == row[end : end + len(answer)]
        assert item.prompt_tokens == end - CONTEXT_IN_DECODE >= SETTINGS.prompt_tokens


def test_identifiers_are_whole_tokens():
    texts = ["def", " par", "se", "(", "path", ",", " if", " x1", " my", "name):", "\n", "path", "_two"]
    found = [(i.name, i.lead, i.start, i.stop) for i in identifiers(texts)]
    assert found == [("parse", " ", 1, 3), ("path", "", 4, 5), ("path_two", "", 11, 13)]


def test_scores_are_those_of_torch():
    random = np.random.default_rng(1)
    logits, dense = random.normal(0, 3, (2, 50, 30)).astype(np.float32)
    dense[::2] = logits[::2]
    tokens = random.integers(0, 30, 50).tolist()
    scores = token_scores(logits, dense, tokens)
    ours, theirs = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (logits, dense))
    expected = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(scores.kl, expected, atol=1e-12)
    nll = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.tensor(tokens), reduction="none")
    np.testing.assert_allclose(scores.nll, nll, rtol=1e-12)
    assert scores.agrees[::2].all()
    assert not scores.agrees.all()
    assert (scores.correct == (logits.argmax(-1) == tokens)).all()
    assert (scores.dense_correct == (dense.argmax(-1) == tokens)).all()


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    """Of normal samples whose mean is known, about 95% have it in their interval; its width is the normal one's."""
    random = np.random.default_rng(0)
    samples = random.normal(7, 2, (150, 60))
    estimates = [bootstrap(mean, [sample], seed) for seed, sample in enumerate(samples)]
    assert 0.89 <= np.mean([e.low <= 7 <= e.high for e in estimates]) <= 0.99
    assert np.mean([e.high - e.low for e in estimates]) == pytest.approx(2 * 1.96 * 2 / np.sqrt(60), rel=0.05)
    assert estimates[0].value == pytest.approx(samples[0].mean())


def test_bootstrap_of_a_ratio_varies_only_with_the_ratio():
    column = np.random.default_rng(0).uniform(1, 100, 30)
    constant = bootstrap(ratio, [0.9 * column, column])
    assert (constant.low, constant.value, constant.high) == pytest.approx((0.9, 0.9, 0.9))
    assert bootstrap(ratio, [column, 0 * column]) is None
    assert bootstrap(mean, [np.full(4, np.nan)]) is None
    assert bootstrap(mean, [np.array([1.0, np.nan, 3.0])]).value == 2


@pytest.fixture
def two_results(demo, sparse, suite, tmp_path):
    """The files of the sparse and of the dense model."""
    first, second = tmp_path / "sparse.json", tmp_path / "dense.json"
    first.write_bytes(result_json(sparse))
    second.write_bytes(result_json(evaluate(PyTorchSubject(demo[0]), dataclasses.replace(suite, tasks=[]))))
    return first, second


def test_paired_differences(two_results, sparse):
    """Paired differences cancel the sequences' common part: far narrower than the intervals of the two."""
    found = paired_difference(*two_results, "nll")
    sequences = sparse.sequences
    assert found.difference.value == pytest.approx((sequences["nll"] - sequences["dense_nll"]).mean(), rel=1e-4)
    assert found.relative.value == pytest.approx(sequences["nll"].mean() / sequences["dense_nll"].mean() - 1, rel=1e-4)
    alone = bootstrap(mean, [sequences["nll"]])
    assert found.difference.high - found.difference.low < 0.2 * (alone.high - alone.low)
    # The dense model reads all of its bytes, and its KL is nothing to compare with.
    read = paired_difference(*two_results, "read_fraction")
    assert read.relative.value == pytest.approx(sequences["read_fraction"].mean() - 1)
    assert paired_difference(two_results[0], two_results[0], "kl").difference.value == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result["data"].update(sha256="0"), "are not of the same sequences: sha256 is"),
        (lambda result: result["data"].update(seed=1), "are not of the same sequences: seed is 0 in one, 1 in"),
        (lambda result: result["sequences"].pop("kl"), "has no column 'kl'; it has nll"),
        (lambda result: result.update(format=2), "is not a result of `clada eval`, format 1"),
    ],
)
def test_results_that_cannot_be_compared(two_results, change, message):
    result = json.loads(two_results[1].read_text())
    change(result)
    two_results[1].write_text(json.dumps(result))
    with pytest.raises(CladaError, match=message):
        paired_difference(*two_results, "kl")


def test_logits_that_are_not_finite_are_refused(demo, suite):
    class Broken(PyTorchSubject):
        """One logit of it is wrong."""

        def read(self, row, prompt_tokens):
            """All at once."""
            reading = super().read(row, prompt_tokens)
            reading.logits[3, 7] = np.nan
            return reading

    with pytest.raises(CladaError, match="broken gave logits that are not finite"):
        evaluate(Broken(demo[0], "broken"), suite)


def test_rows_are_drawn_by_the_seed(demo):
    texts = read_texts(HELDOUT)
    vocabulary = demo[0].config.vocab_size
    rows = draw_rows(texts, demo[1], vocabulary, SETTINGS)
    assert [len(row) for row in rows] == [SETTINGS.row_tokens] * SETTINGS.sequences
    assert rows == draw_rows(texts, demo[1], vocabulary, SETTINGS)
    assert rows != draw_rows(texts, demo[1], vocabulary, dataclasses.replace(SETTINGS, seed=1))


@pytest.mark.parametrize("share", [1, 0.5])
def test_shares_of_the_bytes_can_be_evaluated(inputs_artifact, checkpoint, tmp_path, capsys, share):
    result = tmp_path / "result.json"
    options = ["--reference", checkpoint("llama"), "--data", HELDOUT, "--json", result, "--bytes", share, *SMALL]
    assert clada_main([str(arg) for arg in ["eval", inputs_artifact, *options]]) == 0
    found = json.loads(result.read_text())
    assert found["subject"]["name"] == f"price, bytes {share}"
    metrics = {name: estimate["value"] for name, estimate in found["metrics"].items()}
    assert metrics["read_fraction"] == pytest.approx(share, abs=0.06)
    assert metrics["ffn_bytes"] == pytest.approx(metrics["read_fraction"] * sum(weights(inputs_artifact)) * 4)
    if share == 1:
        assert metrics["kl"] < 1e-6
        assert metrics["perplexity_ratio"] == pytest.approx(1, abs=1e-5)
    else:
        assert metrics["kl"] > 1e-3


def weights(artifact) -> list[int]:
    """Of each product."""
    return [product["inputs"] * product["outputs"] for product in read_manifest(artifact.parent)["inputs"]["products"]]


def test_artifacts_that_skip_neurons_have_no_shares(tiny_artifact, checkpoint, tmp_path, capsys):
    options = ["--reference", checkpoint("llama"), "--data", HELDOUT, "--json", tmp_path / "r.json", "--bytes", 0.5]
    assert clada_main([str(arg) for arg in ["eval", tiny_artifact, *options, *SMALL]]) == 1
    assert "bytes is 0.5, and the artifact skips neurons" in capsys.readouterr().err


def test_command_writes_what_it_measured(tiny_artifact, checkpoint, tmp_path, capsys):
    result, table = tmp_path / "result.json", tmp_path / "tokens.npz"
    options = ["--reference", checkpoint("llama"), "--data", HELDOUT, "--json", result, "--tokens", table, *SMALL]
    assert clada_main([str(arg) for arg in ["eval", tiny_artifact, *options]]) == 0
    out = capsys.readouterr().out
    found = json.loads(result.read_text())
    assert found["format"] == 1
    assert found["subject"] | {"policy": 0, "calibration": 0, "parameters": 0} == {
        "model": checkpoint("llama").name,
        "name": found["subject"]["policy"]["name"],
        "quantization": None,
        "family": "llama",
        "layers": LAYERS,
        "neurons": [NEURONS] * LAYERS,
        "policy": 0,
        "calibration": 0,
        "parameters": 0,
    }
    assert found["data"]["name"] == "heldout.jsonl"
    assert (found["data"]["sequences"], found["data"]["scored_tokens"]) == (3, 120)
    assert {"perplexity", "kl", "disagreement", "read_fraction", "choice_accuracy"} <= set(found["metrics"])
    for name, estimate in found["metrics"].items():
        assert set(estimate) == {"value", "low", "high"}
        assert f"{name} " in out
    with np.load(table, allow_pickle=False) as tokens:
        assert {name: (array.dtype.name, array.shape) for name, array in tokens.items()} == {
            **dict.fromkeys(("sequence", "position", "token"), ("int32", (120,))),
            **dict.fromkeys(("surprisal", "entropy", "load", "kl"), ("float32", (120,))),
            "agrees": ("bool", (120,)),
            **dict.fromkeys(("active", "pool"), ("int32", (120, LAYERS))),
            "neurons": ("int32", (LAYERS,)),
        }
        assert tokens["position"].min() == 16
        assert tokens["position"].max() == 55
        assert tokens["kl"].mean() == pytest.approx(found["metrics"]["kl"]["value"], rel=1e-5)
        assert 1 - tokens["agrees"].mean() == pytest.approx(found["metrics"]["disagreement"]["value"])
        assert 1 - tokens["active"].mean(axis=0) / NEURONS == pytest.approx([f["sparsity"] for f in found["layers"]])
        assert tokens["token"].max() < VOCABULARY
    assert snapshot(tmp_path) == {result, table}
    again = evaluate_artifact(
        tiny_artifact, str(checkpoint("llama")), HELDOUT, EvaluationSettings(3, 16, 40, 5), threads=1
    )
    assert result_json(again) == result.read_bytes()


def swapped_tokens(folder: Path, llama: Path) -> Path:
    """The same checkpoint, but that its tokenizer gives two tokens each other's number."""
    shutil.copytree(llama, folder / "swapped")
    path = folder / "swapped" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder / "swapped"


# What is wrong: the options that it changes, and what is said.
MISTAKES = {
    "no artifact": lambda folder, _: ({"path": folder / "none.onnx"}, "there is no file"),
    "no reference": lambda folder, _: ({"--reference": folder / "none"}, "there is no such folder"),
    "no data": lambda folder, _: ({"--data": folder / "none.txt"}, "cannot read the evaluation data"),
    "few tokens": lambda folder, _: ({"--data": written(folder, "x = 1\n" * 9)}, r"evaluation data has "),
    "few sequences": lambda folder, _: ({"--data": written(folder, "x = 1\n" * 25)}, "3 were asked for"),
    "one sequence": lambda folder, _: ({"--sequences": 1}, "sequences is 1; it must be at least 2"),
    "long row": lambda folder, _: ({"--decode-tokens": 120}, "137 tokens do not fit the model's context of 128"),
    "long text": lambda folder, _: ({"--generation-tokens": 120}, "lower prompt_tokens or generation_tokens"),
    "other family": lambda folder, made: ({"--reference": made("mistral")}, "the artifact has family llama, but"),
    "other vocabulary": lambda folder, _: (
        {"--reference": write_checkpoint(folder / "hf", "llama", vocab_size=600)},
        "the artifact has vocabulary_size 512, but",
    ),
    "other tokenizer": lambda folder, made: (
        {"--reference": swapped_tokens(folder, made("llama"))},
        "the artifact's tokenizer is not that of",
    ),
    "other weights": lambda folder, _: (
        {"--reference": write_checkpoint(folder / "hf", "llama", initializer_range=0.12)},
        "the artifact was not made from",
    ),
    "no folder": lambda folder, _: ({"--json": folder / "none" / "result.json"}, "cannot write"),
    "table is a folder": lambda folder, _: ({"--tokens": folder}, "it is a folder"),
}


def written(folder: Path, text: str) -> Path:
    (folder / "short.txt").write_text(text)
    return folder / "short.txt"


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_input_is_one_line_and_writes_nothing(tiny_artifact, checkpoint, tmp_path, capsys, mistake):
    changes, message = mistake(tmp_path, checkpoint)
    options = {"path": tiny_artifact, "--reference": checkpoint("llama"), "--data": HELDOUT}
    options |= {"--json": tmp_path / "result.json", **dict(zip(SMALL[::2], SMALL[1::2], strict=True)), **changes}
    before = snapshot(tmp_path)
    capsys.readouterr()
    path = options.pop("path")
    fails_with(capsys, clada_main, ["eval", path, *[part for pair in options.items() for part in pair]], message)
    assert snapshot(tmp_path) == before


def test_session_of_a_float16_model(checkpoint, tmp_path):
    """Logits are compared in float32, and bytes are counted in halves."""
    path = tmp_path / "model.onnx"
    export(
        path,
        str(checkpoint("llama")),
        ExportConfig(HALF_OF_NEURONS, calibration_tokens=300, dtype="float16"),
        lambda _: None,
    )
    evaluation = evaluate_artifact(path, str(checkpoint("llama")), HELDOUT, EvaluationSettings(2, 16, 20, 4), threads=1)
    assert evaluation.subject.ffn_bytes == 2 * 3 * LAYERS * NEURONS * 48
    assert SessionSubject(Session(path, threads=1)).read(list(range(20)), 10).logits.dtype == np.float32


def test_shuffled_load_is_that_of_other_tokens(demo_session, suite):
    """Loads as high on the mean, but not this token's."""
    row, prompt = suite.rows[0], SETTINGS.prompt_tokens
    own = SessionSubject(demo_session).read(row, prompt)
    shuffled = ShuffledLoad(demo_session, "shuffled").read(row, prompt)
    assert shuffled.load[0] == pytest.approx(own.load[0], abs=1e-6)
    assert np.corrcoef(shuffled.load, own.load)[0, 1] < 0.5
    assert shuffled.load.mean() == pytest.approx(own.load.mean(), abs=0.2)
    assert shuffled.logits.shape == own.logits.shape
