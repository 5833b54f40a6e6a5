"""The lm-eval adapter, by lm-eval's own evaluation of tasks made of held-out text; nothing is downloaded."""

import functools
import json
import logging
import random
import shutil
import sys
import unittest
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from clada.contract.artifact import CHAT_TEMPLATE_NAME
from clada.errors import CladaError
from clada.evaluation.lm_eval_adapter import CladaLM, generation_config
from clada.exporter.calibration.calibrate import CalibrationConfig
from clada.exporter.calibration.policies import POLICIES
from clada.exporter.export import ExportConfig, export
from clada.exporter.model.checkpoint import load_model
from clada.runtime import GenerationConfig
from clada.runtime.cli import main
from tests.conftest import DEMO_MODEL, ROOT
from tests.support.manifests import vouch_for

TEXTS = [json.loads(line)["text"] for line in (ROOT / "benchmarks/data/heldout.jsonl").read_text().splitlines()]
LONG = [text for text in TEXTS if len(text) > 2400]
CONTEXTS = [text[:900].rstrip() for text in LONG[:4]]
CHOICES = [[text[900:960] for text in LONG[i : i + 3]] for i in range(4)]
# Longer than the demo model's context, so that the text is read in two windows.
DOCUMENTS = [text[:2300] for text in LONG[:2]]
STOP = "\n"


@pytest.fixture(scope="module", autouse=True)
def _folders_of_tasks_read_once():
    """lm-eval parses the thousands of files of its own tasks for each run."""
    build_anew = TaskIndex.build
    of_folder = functools.cache(lambda folder: build_anew([folder]))

    def build(folders: list[Path]) -> dict[str, Any]:
        return {name: entry for folder in folders for name, entry in of_folder(folder).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(build))
        yield


@pytest.fixture(scope="module")
def near_dense(tmp_path_factory) -> Path:
    """The demo model with thresholds so low that next to nothing is skipped."""
    path = tmp_path_factory.mktemp("near") / "model.onnx"
    calibration = CalibrationConfig(target_sparsity=0.005, policy=POLICIES["cats"])
    export(path, str(DEMO_MODEL), ExportConfig(calibration, calibration_tokens=256))
    return path


@pytest.fixture(scope="module")
def near_lm(near_dense) -> CladaLM:
    return CladaLM(str(near_dense), threads=1)


@pytest.fixture
def sparse_lm(demo_artifact) -> CladaLM:
    return CladaLM(str(demo_artifact), threads=1)


@pytest.fixture(scope="module")
def dense_model() -> Any:
    return load_model(str(DEMO_MODEL), torch.float32)[0]


@pytest.fixture(scope="module")
def tasks(demo_session, tmp_path_factory) -> Path:
    """A folder of three tasks; of the generated lines, half are those of the demo artifact."""
    folder = tmp_path_factory.mktemp("tasks")
    config = GenerationConfig(12, (STOP,))
    lines = [demo_session.generate(context, config)[0].text for context in CONTEXTS]
    targets = [line if i % 2 else f"not {line}" for i, line in enumerate(lines)]
    questions = zip(CONTEXTS, CHOICES, targets, strict=True)
    rows = {
        "questions": [{"context": c, "choices": o, "target": t} for c, o, t in questions],
        "documents": [{"text": text} for text in DOCUMENTS],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))

    def write(task: str, data: str, kind: str, **config: Any) -> None:
        files = {"data_files": {"test": str(folder / f"{data}.jsonl")}, "cache_dir": str(folder / "cache")}
        common = {"task": task, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        # JSON is YAML.
        (folder / f"{task}.yaml").write_text(json.dumps(common | {"output_type": kind} | config))

    write(
        "local_choice",
        "questions",
        "multiple_choice",
        doc_to_text="{{context}}",
        doc_to_choice="choices",
        doc_to_target=0,
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    write(
        "local_perplexity",
        "documents",
        "loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    )
    write(
        "local_line",
        "questions",
        "generate_until",
        doc_to_text="{{context}}",
        doc_to_target="{{target}}",
        generation_kwargs={"until": [STOP], "max_gen_toks": 12, "do_sample": False, "temperature": 1.0},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    return folder


def evaluated(lm: CladaLM, folder: Path, task: str) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0)


@torch.no_grad()
def dense_log_likelihood(model: Any, inputs: list[int], scored: list[int]) -> float:
    """Of the last tokens, those that the last inputs predict, in one dense pass of PyTorch."""
    log_p = model(torch.tensor([inputs])).logits[0, -len(scored) :].double().log_softmax(-1)
    return float(log_p.gather(1, torch.tensor(scored)[:, None]).sum())


def choice_scores(results: dict[str, Any]) -> list[float]:
    samples = sorted(results["samples"]["local_choice"], key=lambda sample: sample["doc_id"])
    return [score for sample in samples for score, _greedy in sample["filtered_resps"]]


def test_choices_are_scored_as_pytorch_does_where_nothing_is_skipped(near_lm, sparse_lm, dense_model, tasks):
    expected = []
    for context, choices in zip(CONTEXTS, CHOICES, strict=True):
        read = near_lm.tok_encode(context)
        for choice in choices:
            continuation = near_lm.tok_encode(context + choice)[len(read) :]
            expected.append(dense_log_likelihood(dense_model, read + continuation[:-1], continuation))
    results = evaluated(near_lm, tasks, "local_choice")
    assert choice_scores(results) == pytest.approx(expected, abs=5e-3)
    right = [max(range(3), key=expected[i : i + 3].__getitem__) == 0 for i in range(0, len(expected), 3)]
    assert results["results"]["local_choice"]["acc,none"] == sum(right) / len(right)

    sparse = evaluated(sparse_lm, tasks, "local_choice")
    distances = [abs(ours - dense) for ours, dense in zip(choice_scores(sparse), expected, strict=True)]
    assert max(distances) > 0.1
    assert max(distances) < 10
    assert sparse["config"]["policy"]["target_sparsity"] == 0.5
    assert 0.3 < sparse["config"]["active_fraction"] < 0.7
    assert results["config"]["active_fraction"] > 0.97


def test_perplexity_is_that_of_pytorch_where_nothing_is_skipped(near_lm, dense_model, tasks):
    total, context = 0.0, near_lm.max_length
    for text in DOCUMENTS:
        ids = [near_lm.prefix_token_id, *near_lm.tok_encode(text)]
        assert context + 1 < len(ids) < 2 * context
        total += dense_log_likelihood(dense_model, ids[:context], ids[1 : context + 1])
        total += dense_log_likelihood(dense_model, ids[-context - 1 : -1], ids[context + 1 :])
    size = sum(len(text.encode()) for text in DOCUMENTS)
    before = near_lm.get_model_info()["decoded_tokens"]
    results = evaluated(near_lm, tasks, "local_perplexity")
    expected = float(torch.tensor(-total / size, dtype=torch.float64).exp())
    assert results["results"]["local_perplexity"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-5)
    # All of the tokens are read in decode, but for the last of each window, which is not read at all.
    scored = sum(len(near_lm.tok_encode(text)) for text in DOCUMENTS)
    assert near_lm.get_model_info()["decoded_tokens"] - before >= scored - 2 * len(DOCUMENTS)


def test_command_runs_tasks_and_writes_results(demo_artifact, tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", list(sys.argv))  # the command replaces it
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    options = ["--include_path", tasks, "--tasks", "local_line", "local_choice", "--output_path", tmp_path]
    assert main([str(word) for word in ["lm-eval", "--model_args", f"model={demo_artifact},threads=1", *options]]) == 0
    assert "|local_line" in capsys.readouterr().out
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["results"]["local_line"]["exact_match,none"] == 0.5
    assert results["config"]["model"] == "clada"
    assert results["config"]["decoded_tokens"] > 0


def test_first_token_after_a_context_is_predicted_in_decode(near_lm, sparse_lm):
    """A dense prefill would predict it where no context token is decoded."""
    for lm, differs in ((near_lm, False), (sparse_lm, True)):
        distances = []
        for context in CONTEXTS:
            ids = lm.tok_encode(context)
            logits = torch.from_numpy(lm.session.prefill([ids]).logits[0].copy()).double()
            token = int(logits.argmax())
            ((score, greedy),) = lm._loglikelihood_tokens([(None, ids, [token])], disable_tqdm=True)
            distances.append(abs(score - float(logits.log_softmax(-1)[token])))
            assert differs or greedy
        assert (max(distances) > 1e-2) == differs


def test_greedy_is_whether_the_model_would_say_so(near_lm):
    ids = near_lm.tok_encode(CONTEXTS[0])
    tokens = [piece.token for piece in near_lm.session.stream(ids, GenerationConfig(6))]
    changed = [[*tokens[:i], tokens[i] + 1, *tokens[i + 1 :]] for i in (0, 3, 5)]
    answers = near_lm._loglikelihood_tokens([(None, ids, row) for row in [tokens, *changed]], disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False, False, False]
    assert all(answers[0][0] > score for score, _ in answers[1:])


def test_continuations_that_differ_in_the_last_token_are_read_once(sparse_lm):
    ids = sparse_lm.tok_encode(CONTEXTS[1])
    requests = [(None, ids, [50, 60, last]) for last in (70, 80, 90)]
    alone = [sparse_lm._loglikelihood_tokens([request], disable_tqdm=True)[0] for request in requests]
    read = sparse_lm.get_model_info()["decoded_tokens"]
    with unittest.TestCase().assertLogs("lm_eval.clada", logging.INFO) as logs:
        assert sparse_lm._loglikelihood_tokens(requests, disable_tqdm=True) == alone
    assert sparse_lm.get_model_info()["decoded_tokens"] - read == read / 3
    assert f"{read * 4 // 3} tokens were read in decode, with 5" in logs.output[0]


def test_context_that_does_not_fit_loses_its_beginning(near_lm):
    context = near_lm.tok_encode(LONG[0])[: near_lm.max_length + 80]
    fits = context[-(near_lm.max_length + 1 - 2) :]
    with unittest.TestCase().assertLogs("lm_eval.clada", logging.WARNING) as logs:
        cut = near_lm._loglikelihood_tokens([(None, context, [5, 6])], disable_tqdm=True)
    assert "1 of 1 contexts are cut on the left" in logs.output[0]
    with unittest.TestCase().assertNoLogs("lm_eval.clada", logging.WARNING):
        assert near_lm._loglikelihood_tokens([(None, fits, [5, 6])], disable_tqdm=True) == cut

    generated = near_lm.generate_until([generation(LONG[0], {"max_gen_toks": 8})], disable_tqdm=True)
    last = near_lm.tok_encode(LONG[0])[-(near_lm.max_length - 8) :]
    assert generated == ["".join(piece.text for piece in near_lm.session.stream(last, GenerationConfig(8)))]


def generation(context: str, arguments: dict[str, Any]) -> Instance:
    return Instance("generate_until", {}, (context, arguments), 0)


def test_sampling_follows_lm_evals_seed_and_repeats_differ(near_lm):
    requests = [generation(CONTEXTS[0], {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12})] * 2
    runs = []
    for seed in (1, 1, 2):
        random.seed(seed)
        runs.append(near_lm.generate_until(requests, disable_tqdm=True))
    assert runs[0] == runs[1]
    assert len({runs[0][0], runs[0][1], runs[2][0]}) == 3


def test_generation_arguments_are_those_of_lm_eval():
    config = generation_config({"until": "\n\n", "do_sample": False, "temperature": 1.0, "num_beams": 1})
    assert (config.max_new_tokens, config.stop, config.sampling.temperature) == (256, ("\n\n",), 0)
    config = generation_config({"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9})
    sampling = config.sampling
    assert (config.max_new_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (5, 0.5, 3, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"max_gen_toks": 512}, "max_gen_toks is 512; the model's context of 512 must hold it and a prompt"),
        ({"max_gen_toks": 4, "temperature": -1}, "temperature is -1"),
    ],
)
def test_generation_that_cannot_be_had_is_refused(near_lm, arguments, message):
    with pytest.raises(CladaError, match=message):
        near_lm.generate_until([generation("x", arguments)], disable_tqdm=True)


@pytest.mark.parametrize("count", [0, 513])
def test_continuation_that_cannot_be_scored_is_refused(near_lm, count):
    with pytest.raises(CladaError, match=f"a continuation has {count} tokens"):
        near_lm._loglikelihood_tokens([(None, [1], [5] * count)], disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name no model"),
        ({"model": "x", "pretrained": "y"}, "model_args hold pretrained"),
        ({"model": "nowhere.onnx"}, "there is no file nowhere.onnx"),
    ],
)
def test_model_that_cannot_be_had_is_refused(arguments, message):
    with pytest.raises(CladaError, match=message):
        CladaLM(**arguments)


def test_chat_template_writes_the_conversation(near_dense, near_lm, tmp_path):
    folder = shutil.copytree(near_dense.parent, tmp_path / "chat")
    template = (
        "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
    )
    (folder / CHAT_TEMPLATE_NAME).write_text(template)
    vouch_for(folder / CHAT_TEMPLATE_NAME)
    lm = CladaLM(str(folder / near_dense.name))
    history = [{"role": "user", "content": "why?"}]
    assert lm.apply_chat_template(history) == "<user>why?<answer>"
    begun = [*history, {"role": "assistant", "content": "Because"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "<user>why?<answer>Because"
    assert lm.chat_template(True) == template
    with pytest.raises(CladaError, match="no chat template"):
        near_lm.apply_chat_template(history)
    assert near_lm.chat_template(True) is None


def test_special_tokens_begin_a_text_once(near_lm):
    plain = near_lm.tok_encode("import os", add_special_tokens=False)
    assert plain
    for text in ("import os", "<|endoftext|>import os"):
        assert near_lm.tok_encode(text) == [near_lm.prefix_token_id, *plain]


@pytest.mark.fault("command line", "an ordinary mistake in lm-eval's options", now="one line of error, exit code 1")
@pytest.mark.parametrize(
    ("model", "task", "message"),
    [("nowhere.onnx", "local_line", "there is no file nowhere.onnx"), (".", "no_such_task", "no_such_task")],
)
def test_mistakes_in_options(capsys, monkeypatch, tasks, model, task, message):
    monkeypatch.setattr(sys, "argv", ["clada"])
    # lm-eval's handler writes to what stderr was when an earlier test imported it.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    assert main(["lm-eval", "--model_args", f"model={model}", "--tasks", task, "--include_path", str(tasks)]) == 1
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in err
